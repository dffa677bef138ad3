"""What the pool keeps of each replica, and of each part of a request that a replica works on."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass, field

from finetune.inference.serving.messages import (
    Ask,
    Piece,
    Record,
    Write,
)

ROOM = 512  # rows, or texts to be written, that a replica has at once


@dataclass(eq=False)
class Part:
    """What a replica is asked at once. pieces: what it wrote so far; None for rows."""

    message: Ask | Write
    weight: int
    records: asyncio.Future[list[Record]]
    pieces: asyncio.Queue[Piece] | None = None
    tries: int = 0
    begun: bool = False  # the client has a piece of the reply already
    link: ReplicaLink | None = None
    done: bool = False

    def fail(self, kind: str, message: str) -> None:
        """End it without an answer."""
        self.done = True
        if self.pieces is not None:
            self.pieces.put_nowait(Piece(error=(kind, message)))
        elif not self.records.done():
            assert isinstance(self.message, Ask)
            error = {"error": {"kind": kind, "message": message}}
            self.records.set_result([{"row": place, **error} for place in range(len(self.message.rows))])


@dataclass(eq=False)
class ReplicaLink:
    """A replica as the front process sees it. parts: what it is working on, by id."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    writer: asyncio.StreamWriter | None = None
    ready: bool = False
    halted: bool = False  # by SIGSTOP
    failures: int = 0
    parts: dict[int, Part] = field(default_factory=dict)

    @property
    def load(self) -> int:
        return sum(part.weight for part in self.parts.values())

    def takes(self, part: Part) -> bool:
        """Whether it may work on the part now. One that is tried again is alone."""
        if not self.ready or self.halted or self.load >= ROOM:
            return False
        return not self.parts if part.tries else not any(other.tries > 1 for other in self.parts.values())
