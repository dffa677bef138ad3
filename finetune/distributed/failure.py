"""How a rank reports what ended it, so that the first failure is shown, and no other. No torch here."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from finetune.distributed.env import from_environ
from finetune.distributed.rendezvous import given_folder
from finetune.distributed.replica_place import describe_rank, process_name
from finetune.ending import end_process, ending
from finetune.errors import (
    DISK_FULL,
    EXIT_FAILED,
    EXIT_STOPPED,
    EXIT_USER,
    ODD_PATH,
    FinetuneError,
    Halted,
    Stopped,
    TrainingFailed,
    UserError,
    fault_of_path,
)
from finetune.recipe.json_file import read_json
from finetune.recipe.machine import lacks_memory, memory_limit
from finetune.recipe.secrets import mask_text
from finetune.terminal import printable

# What an error says when another rank has ended.
_PEER_SIGNS = ("connection closed by peer", "connection reset by peer", "broken pipe", "nccl", "gloo", "socket timeout")

RESERVED_BYTES = 4096
PEER_SECONDS = 1.0  # in which a rank that failed has written why


@dataclass(frozen=True)
class Failure:
    """How one rank ended. echo: only because a peer had. log: where the traceback is, "" for an error that needs none.
    halted: a restart would not help, see errors.Halted. kind: see errors.FinetuneError.
    """

    rank: int
    time: float
    what: str
    where: str
    remedy: str
    exit_code: int
    echo: bool
    log: str = ""
    halted: bool = False
    kind: str = ""

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Failure:
        """Raises: TypeError for other values than those that `write_failure` writes."""
        failure = cls(**tree)
        for part in fields(cls):
            value, kind = getattr(failure, part.name), part.type
            if kind != type(value).__name__ and not (kind == "float" and isinstance(value, int)):
                raise TypeError(f"{part.name} is {value!r}")
        return failure

    def to_error(self) -> FinetuneError:
        """The same error, in the process that supervises."""
        kind: type[FinetuneError] = {EXIT_USER: UserError, EXIT_STOPPED: Stopped, EXIT_FAILED: TrainingFailed}.get(
            self.exit_code, TrainingFailed
        )
        kind = Halted if self.halted else kind
        expected = self.exit_code in (EXIT_USER, EXIT_STOPPED) or self.halted
        where = self.where if expected else ", ".join(filter(None, (describe_rank(self.rank), self.where)))
        kept = f"The traceback is in {self.log}." if self.log and (expected or not self.remedy) else ""
        return kind(self.what, where=where, remedy=" ".join(filter(None, (self.remedy, kept))))


class PeerFailed(FinetuneError):
    """Another rank's failure, as seen from here: never shown first, because that rank reports its own."""


@contextmanager
def report_failures(rank: int, logs: Path, *, supervised: bool) -> Iterator[None]:
    """An exception inside ends this process: the error is written to failure-rank-*.json, the traceback to stderr (which
    is the rank's log). Without a supervising process the rank prints its error itself, unless another one was first.
    """
    reserved = _reserve(logs, rank)
    with ending(lambda: _remove(reserved)):
        try:
            yield
        except Exception as error:
            failure = describe_failure(error, rank, logs / f"{process_name(rank)}.log")
            write_failure(logs, failure)
            if not isinstance(error, FinetuneError) or error.__cause__ is not None:
                _print_traceback()
            if not supervised:
                time.sleep(0.5)  # let the rank that failed first write its file
                if (first := _first_failure(logs) or failure).rank == rank:
                    _report(first)
            end_process(failure.exit_code)


def _report(failure: Failure) -> None:
    """To the terminal; to the rank's log if nobody reads the terminal any more."""
    if failure.echo:  # a rank that was killed reports nothing
        what = "another rank ended, and did not say why"
        remedy = "The launcher reports how it ended. Run the same command again; a training resumes from its last checkpoint."
        failure = replace(failure, what=what, where="", remedy=remedy)
    text = printable(failure.to_error())
    stopped = failure.exit_code == EXIT_STOPPED
    line = f"stopped: {text.removeprefix('stopped ')}\n" if stopped else f"error: {text}\n"
    try:
        os.write(_TERMINAL, line.encode())
    except OSError:
        with suppress(OSError):
            sys.stderr.write(line)
            sys.stderr.flush()


def _first_failure(logs: Path) -> Failure | None:
    """Of the ranks that there are: an earlier start, whose files nobody removed, may have had more."""
    env = from_environ()
    ranks = env.world_size if env is not None else 1
    return next((failure for failure in read_failures(logs) if failure.rank < ranks), None)


def _reserve(folder: Path, rank: int) -> Path:
    """The file that a failure is written into, with its space taken now: later the disk may be full. A failure of this rank
    in an earlier start is removed.
    """
    path = _unfinished(failure_file(folder, rank))
    _remove(failure_file(folder, rank))
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(" " * RESERVED_BYTES, encoding="utf-8")
    return path


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def _print_traceback() -> None:
    """To the rank's log, if it can still be written."""
    with suppress(OSError):
        traceback.print_exc()


FRAGMENTED = 0.1  # of the memory that torch's allocator holds, free when an allocation failed: worth a sentence
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_RESERVED = re.compile(
    r"([\d.]+) ([KMG]iB) is allocated by PyTorch.*?([\d.]+) ([KMG]iB) is reserved by PyTorch but unallocated", re.S
)
_TERMINAL = os.dup(2)  # as it was before stderr went to the rank's log


def describe_failure(error: BaseException, rank: int, log: Path) -> Failure:
    """What this rank reports of an error."""
    if isinstance(error, FinetuneError):
        echo = isinstance(error, PeerFailed)
        halted = isinstance(error, Halted)
        what, where, remedy = (mask_text(part) for part in (error.what, error.where, error.remedy))
        kept = str(log) if error.trace else ""
        return Failure(rank, time.time(), what, where, remedy, error.exit_code, echo, kept, halted, error.kind)
    if fault := fault_of_path(error, ODD_PATH):
        return Failure(rank, time.time(), fault.what, mask_text(fault.where), "", fault.exit_code, False, str(log))
    text = mask_text(str(error).strip()) or type(error).__name__
    origin = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    where = f"{origin.filename}:{origin.lineno}" if origin else ""
    echo = tells_of_peer(error)
    what = f"{type(error).__name__}: {text.splitlines()[0]}"
    remedy = ""
    if lacks_memory(error) and memory_limit():
        what, remedy = f"not enough memory ({what})", memory_limit()
    elif lacks_memory(error):
        remedy = (
            "Set a smaller parallel.micro_batch, model.gradient_checkpointing: light or true, or a higher ZeRO stage: "
            "the numbers stay the same." + _describe_fragments(text)
        )
    kind = ""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind, what = DISK_FULL, f"the disk is full ({what})"
        where, remedy = error.filename or where, "Free some space and run the same command again to resume."
    return Failure(rank, time.time(), what, str(where), remedy, EXIT_FAILED, echo, str(log), kind=kind)


def _describe_fragments(text: str) -> str:
    """A sentence on torch's allocator, where its error says that much of what it holds is in pieces that were too small."""
    found = _RESERVED.search(text)
    setting = " ".join(os.environ.get(name, "") for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"))
    if found is None or "expandable_segments" in setting:
        return ""
    used, idle = (float(found[number]) * _UNITS[found[number + 1]] for number in (1, 3))
    if idle < FRAGMENTED * (used + idle):
        return ""
    return (
        f" {idle / (used + idle):.0%} of the memory that torch holds is free, in pieces that were too small: "
        "PYTORCH_ALLOC_CONF=expandable_segments:True may help (docs/launching.md)."
    )


def tells_of_peer(error: BaseException) -> bool:
    """Whether an error of torch says that another rank is gone, and nothing of this one."""
    text = mask_text(str(error)).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _PEER_SIGNS)


def first_failure(error: BaseException, logs: Path) -> Failure:
    """What ended a training, as rank 0 sees it: the rank that failed first where this one only noticed (its file is there
    within a moment), otherwise `error`.
    """
    own = describe_failure(error, 0, logs / "rank-0.log")
    ends = time.monotonic() + PEER_SECONDS
    while own.echo:
        first = next((one for one in read_failures(logs, *filter(None, [given_folder()])) if not one.echo), None)
        if first is not None:
            return first
        if time.monotonic() > ends:
            break
        time.sleep(0.05)
    return own


def write_failure(folder: Path, failure: Failure) -> None:
    """failure-rank-*.json, whole or absent. Where the disk of the run is full, it goes to the private folder of the launch:
    a full disk must be reported, too.
    """
    text = json.dumps(asdict(failure))
    for home in filter(None, (folder, given_folder())):
        path = failure_file(home, failure.rank)
        beside = _unfinished(path)
        try:
            home.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT, 0o644), "w", encoding="utf-8") as file:
                file.write(text.ljust(RESERVED_BYTES))  # over what is reserved there, which a full disk allows
            beside.replace(path)
            return
        except OSError:
            _print_traceback()


def read_failures(*folders: Path) -> list[Failure]:
    """All that were written, in the order of time; echoes last. What is no such file is passed over."""
    found = []
    for home in folders:
        for path in home.glob("failure-rank-*.json"):
            with suppress(OSError, ValueError, TypeError):
                found.append(Failure.of(read_json(path)))
    return sorted(found, key=lambda failure: (failure.echo, failure.time))


def clear_failures(folder: Path, ranks: Iterable[int] | None = None) -> None:
    """Before a start: remove what an earlier one left, and the space that killed ranks had reserved. ranks: None for all."""
    named = [failure_file(folder, rank) for rank in ranks or ()]
    for path in folder.glob("failure-rank-*.json") if ranks is None else named:
        path.unlink(missing_ok=True)
    for path in folder.glob(".failure-rank-*.json") if ranks is None else map(_unfinished, named):
        path.unlink(missing_ok=True)


def failure_file(folder: Path, rank: int) -> Path:
    """Where a rank records why it failed."""
    return folder / f"failure-rank-{rank:05d}.json"
