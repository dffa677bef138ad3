"""What to report of ranks that could not say themselves why they ended. No torch here."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from finetune.distributed.replica_place import describe_rank
from finetune.errors import EXIT_INTERRUPTED, FinetuneError, TrainingFailed
from finetune.recipe.machine import cause_of_signal, memory_limit


def was(ranks: Sequence[int]) -> str:
    """The verb for so many ranks."""
    return "was" if len(ranks) == 1 else "were"


def killed_rank(ends: dict[int, int], again: str) -> FinetuneError | None:
    """What a signal ended. SIGTERM comes last: whoever ends one rank that way ends the others for it. again: the remedy."""
    killed = sorted(
        ((_signal(code), rank) for rank, code in ends.items() if _signal(code)),
        key=lambda end: end[0] == signal.SIGTERM,
    )
    if not killed:
        return None
    number, rank = killed[0]
    remedy = " ".join(filter(None, (memory_limit(), again)))
    return TrainingFailed(describe_kill(number), where=describe_rank(rank), remedy=remedy)


def describe_kill(number: int) -> str:
    """How a process ended by a signal, as the rest of a sentence."""
    return f"was killed by {signal.Signals(number).name}{cause_of_signal(number)}"


def describe_end(code: int) -> str:
    """How a child process ended, by its exit code as subprocess has it: the rest of a sentence."""
    return describe_kill(-code) if code < 0 else f"ended with exit code {code}"


def _signal(code: int) -> int:
    """The signal by which a process ended; 0 for one that ended by itself. Python ends itself on SIGINT."""
    return signal.SIGINT if code == EXIT_INTERRUPTED else max(0, -code)


def unexplained(code: int, logs: Path, said_from: int) -> FinetuneError:
    """No rank could report why: it ended before our code ran."""
    lines = [line.strip() for line in _said(logs, said_from).splitlines()]
    errors = [line for line in lines if re.match(r"\w*(Error|Exception)\b.*:", line)]
    last = (errors or [line for line in lines if line.strip("=-")] or ["nothing was printed"])[-1]
    what = f"the processes ended with code {code}: {last}"
    return TrainingFailed(what, where=str(logs / "launcher.log"), remedy=memory_limit())


def _said(logs: Path, said_from: int) -> str:
    """What the ranks wrote during this launch; the file holds earlier ones, too."""
    with (logs / "launcher.log").open("rb") as log:
        log.seek(said_from)
        return log.read()[-100_000:].decode(errors="replace")
