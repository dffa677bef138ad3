"""What an output is the answer to: the same command goes on with it, another one is refused with what differs."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from finetune import __version__
from finetune.errors import UserError
from finetune.inference.prediction.parts import Parts, disk_errors, publish_sealed, read_sealed
from finetune.inference.prediction.state import State
from finetune.recipe.containment import check_contained

FORMAT = 1
_HEAD_BYTES = 65_536
READING = ("keep", "columns", "read")  # options that are part of the identity of rows, too


@dataclass(frozen=True)
class Manifest:
    """sources: as the user named them. identity: of their content, see RowStream. model, digest: name and digest of the
    model. options: of the command, as far as answers depend on them. budget, window_rows: what the chunks follow from.
    """

    sources: list[str]
    identity: list[Any]
    model: str
    digest: str
    options: dict[str, Any]
    budget: int
    window_rows: int
    version: str = __version__
    format: int = FORMAT

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What is not as in the manifest of an earlier start, for people."""
        mine = json.loads(json.dumps(asdict(self)))
        found = []
        before: Mapping[str, Any] = other.get("options") or {}
        if mine["identity"] != other.get("identity"):  # the same files may be named in another way, or have been moved
            named, before_named = _named(mine["sources"]), _named(other.get("sources"))
            if named != before_named:
                found.append(f"the data is {named}, and was {before_named}")
            elif all(mine["options"].get(name) == before.get(name) for name in READING):
                found.append(f"the content of {named} has changed")
        if mine["digest"] != other.get("digest"):
            same = mine["model"] == other.get("model")
            found.append(
                f"the weights or settings of {self.model} have changed"
                if same
                else f"the model is {self.model}, and was {other.get('model')}"
            )
        for name in sorted({*mine["options"], *before}):
            if mine["options"].get(name) != before.get(name):
                found.append(f"--{name.replace('_', '-')} is {mine['options'].get(name)}, and was {before.get(name)}")
        for name, meaning in (
            ("budget", "the size of chunks"),
            ("window_rows", "rows in a window"),
            ("version", "finetune"),
        ):
            if mine[name] != other.get(name):
                found.append(f"{meaning} is {mine[name]}, and was {other.get(name)}")
        return found


def begin_or_resume(parts: Parts, manifest: Manifest, *, resumable: bool) -> State:
    """The state to go on from; a new one, and the manifest written, where there is no output yet.

    Raises: UserError for an output that is another command's, or somebody's file that was put there before the first answer.
    """
    before, state = read_manifest(parts), State.read(parts.state)
    if before is None or not (state.windows or state.finished or parts.has_answers()):
        if before is None:
            check_output(parts)
        _check_content(parts, answered=False)
        with disk_errors(parts.folder):
            parts.folder.mkdir(parents=True, exist_ok=True)
        for number in parts.windows():
            parts.remove_window(number)
        publish_sealed(parts.manifest, asdict(manifest))
        return State()
    if found := manifest.differences(before):
        raise UserError(
            "the output was begun by another command: " + "; ".join(found),
            where=str(parts.output),
            remedy=f"Give another --output, or remove {parts.output} and {parts.folder} to begin again.",
        )
    if not resumable:
        known = "whether this is the same is not known" if state.finished else "cannot be read again from its beginning"
        raise UserError(
            f"an earlier standard input was answered{'' if state.finished else ' in part'}, and {known}: nothing is read",
            where=str(parts.output),
            remedy="Give another --output; or write the input to a file, which can be resumed and compared; or remove "
            f"{parts.output} and {parts.folder} to begin again.",
        )
    if not state.windows and not state.finished:
        _check_content(parts, answered=True)
    if state.rows and not (parts.output.exists() or parts.rows.exists()):
        raise UserError(
            f"{state.rows:,} rows were written to it, and it is not there any more",
            where=str(parts.output),
            remedy=f"Bring it back, or remove {parts.folder} to begin again.",
        )
    return state


def check_output(parts: Parts) -> None:
    """Raises: UserError for an output that exists without being one of ours, or a place where none can be."""
    check_parts(parts)
    if parts.output.exists() and read_manifest(parts) is None:
        raise UserError(
            "exists already, and no prediction of ours has begun it",
            where=str(parts.output),
            remedy="Give another --output, or remove the file.",
        )
    if parts.output.parent.exists() and not parts.output.parent.is_dir():
        raise UserError("is not a folder", where=str(parts.output.parent), remedy="Give another --output.")


def check_parts(parts: Parts) -> None:
    """Raises: UserError for what somebody has put in place of our files: links that lead elsewhere, pipes, devices."""
    remedy = "Remove it, or give another --output."
    if parts.folder.is_symlink():
        raise UserError("is a link, and not followed", where=f"{parts.folder}", remedy=remedy)
    if parts.folder.exists() and not parts.folder.is_dir():
        raise UserError("is not a folder", where=str(parts.folder), remedy=remedy)
    what = "the folder beside the output"
    check_contained(parts.folder, what=what, remedy=remedy, odd_remedy=remedy)
    if parts.output.exists() and not parts.output.is_file():
        raise UserError("is not a file", where=str(parts.output), remedy="Give another --output.")


def _check_content(parts: Parts, *, answered: bool) -> None:
    """Of an output of which the state says that nothing is written, so that its content is about to be removed.

    answered: some chunks are, so a start that was killed may have written rows.
    Raises: UserError for a file that another program or person has put there since.
    """
    try:
        with parts.output.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror or error}", where=str(parts.output), remedy="Give another --output."
        ) from None
    suffix, first = parts.output.suffix.lower(), {".csv": b"row,", ".jsonl": b'{"row": 0'}
    ours = suffix in first and head[: len(first[suffix])] == first[suffix][: len(head)]
    if suffix == ".csv":
        ours = ours and (answered or head.count(b"\n") <= 1)  # the header
    elif not answered:
        ours = False
    if head and not ours:
        raise UserError(
            "holds what no prediction of ours has written, and would be replaced",
            where=str(parts.output),
            remedy="Move the file away, or give another --output.",
        )


def read_manifest(parts: Parts) -> dict[str, Any] | None:
    """The manifest of an earlier start; None if there was none. Raises: UserError if it cannot be read."""
    try:
        found = read_sealed(parts.manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"cannot be read: {error}", where=str(parts.manifest), remedy="Remove its folder.") from None
    if not isinstance(found.get("options", {}), dict):
        raise UserError("cannot be read: it is no manifest", where=str(parts.manifest), remedy="Remove its folder.")
    return found


@contextmanager
def only_one(parts: Parts) -> Iterator[None]:
    """While the block runs, no other process writes this output. Raises: UserError if one does; see check_parts."""
    check_parts(parts)
    with disk_errors(parts.folder):
        parts.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(parts.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "another process is writing it now",
                where=str(parts.output),
                remedy="Wait until it has ended, or give another --output.",
            ) from None
        yield
    finally:
        os.close(handle)


def _named(sources: Any) -> str:
    return ", ".join(map(str, sources)) if isinstance(sources, list) else str(sources)
