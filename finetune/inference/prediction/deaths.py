"""What a process was at when it died without a word (a fault of memory, the OOM killer): the rows that kill it are found, and
given up, instead of killing every next start. No torch here: the process that starts the ranks reads it.

Each rank keeps a small file up to date, without waiting for the disk: the file outlives the process, not the machine. The
chunks of a rank that died are tried again as they are. At the second death, a chunk is answered example by example from then
on, and an example at which the process dies even so is an error of its row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from finetune.inference.prediction.parts import ChunkName, Parts

SIZE = 4096  # bytes of the file: one write, which a kill cannot cut in two
NOWHERE = -1  # the file could not be made
MOST_CHUNKS = 100  # that are noted; an answerer has a few at a time


class Whereabouts:
    """Of one rank, written by it. Its file is gone when the rank ends by itself."""

    def __init__(self, parts: Parts, rank: int) -> None:
        self._path, self._handle = parts.at(rank), NOWHERE
        with suppress(OSError):  # a full disk: a prediction can do without
            parts.folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def note(self, chunks: Iterable[ChunkName], *, example: int | None = None, answered: int = 0) -> None:
        """chunks: in work. example: index in the only one of them, of what is answered alone. answered: of its examples,
        before that one, in this launch.
        """
        text = json.dumps({"chunks": list(chunks)[:MOST_CHUNKS], "example": example, "answered": answered})
        with suppress(OSError):
            os.pwrite(self._handle, text.ljust(SIZE).encode(), 0)

    def close(self) -> None:
        if self._handle != NOWHERE:
            os.close(self._handle)
            self._handle = NOWHERE
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Found:
    chunks: list[ChunkName]
    example: int | None
    answered: int


def forget_whereabouts(parts: Parts) -> None:
    """Before a start: what an earlier one left says nothing about this one."""
    for path in parts.folder.glob("at-*"):
        path.unlink(missing_ok=True)


def note_deaths(parts: Parts, dead: Sequence[int]) -> tuple[list[str], bool]:
    """Remember at what the ranks `dead` died. Called when no process of the launch is left. A chunk at which several of them
    died together, as those of a replica do, has one death more.

    Returns: sentences for the user, and whether one of these ranks had answered examples of the chunk alone before.
    """
    lines, gained, noted = [], False, set[ChunkName]()
    for rank in dead:
        found = _read(parts, rank)
        if found is None:
            continue
        gained = gained or found.answered > 0
        for name in found.chunks:
            if name in noted or not parts.window(name[0]).is_dir() or parts.answers(name).exists():
                continue
            noted.add(name)
            with suppress(OSError):
                lines.append(_note(parts, rank, name, found.example))
    return [line for line in lines if line], gained


def _note(parts: Parts, rank: int, name: ChunkName, example: int | None) -> str:
    where = f"chunk {name[1]} of window {name[0]}"
    if example is not None:
        with parts.lost(name).open("a") as file:
            file.write(f"{example}\n")
        return f"rank {rank} died at one row of {where}, alone: it is given up"
    if not parts.died(name).exists():
        parts.died(name).touch()
        return ""
    parts.failed(name).touch()
    return f"ranks died twice at {where}: its rows are answered one by one"


def _read(parts: Parts, rank: int) -> _Found | None:
    try:
        tree = json.loads(parts.at(rank).read_text())
        chunks = [(int(window), int(chunk)) for window, chunk in tree["chunks"]]
        return _Found(chunks, tree["example"], tree["answered"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
