"""A rank takes the next chunk whenever it has time for one: tickets are numbers, and no rank waits for another.

The process that reads announces windows on the board, with the chunks that are to be answered; ticket n is the n-th of them
over all announcements. The ranks of a replica take the ticket that its first rank took.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from finetune.distributed.session import Session
from finetune.inference.prediction.board import END, Board, ReadersBoard
from finetune.inference.prediction.parts import ChunkName

POLL_SECONDS = (0.002, 0.05)  # between two looks at the store: at first, and at most
NO_MORE = "none"  # what the first rank of a replica says to the others in place of a number


@dataclass(frozen=True)
class Ticket:
    """A chunk to answer. alone: a rank failed at it, so its examples are to be answered one by one."""

    name: ChunkName
    alone: bool


@dataclass(frozen=True)
class _Announced:
    window: int
    first: int
    todo: list[int]
    failed: list[int]

    @property
    def end(self) -> int:
        """The first ticket after it."""
        return self.first + len(self.todo)


def announce_chunks(
    board: ReadersBoard, index: int, first: int, window: int, todo: Sequence[int], failed: Sequence[int]
) -> None:
    """index: of the announcement, from 0. first: ticket of its first chunk. todo: chunks of the window to answer; failed:
    those of them whose examples are to be answered one by one.
    """
    board.announce(f"predict/window/{index}", json.dumps([window, first, list(todo), list(failed)]))


@dataclass
class PullQueue:
    """One rank's way to chunks. pulls: tickets taken; pull_seconds: of them, with the time that this process waited for a core
    and the answer; pull_cpu_seconds: of this thread alone.
    """

    session: Session
    board: Board
    pulls: int = 0
    pull_seconds: float = 0.0
    pull_cpu_seconds: float = 0.0
    _windows: list[_Announced] = field(default_factory=list)
    _read: int = 0
    _known: int = 0  # tickets that are announced, as far as was read
    _taken: int = 0

    def tickets(self) -> Iterator[Ticket | None]:
        """Chunks for this rank, until there are no more. None: there is none yet; asking again waits a moment.

        Raises: PeerFailed if the process that reads the data failed.
        """
        while True:
            number = yield from self._next_number()
            if number is None:
                return
            yield self._find(number)

    def _next_number(self) -> Generator[None, None, int | None]:
        session = self.session
        place = f"predict/replica/{session.replica}/{self._taken}"
        self._taken += 1
        if not session.is_replica_lead:
            text = yield from self._wait_for(place)
            return None if text == NO_MORE else int(text)
        number = yield from self._take()
        if session.replica_size > 1:
            session.store.announce(place, NO_MORE if number is None else str(number))
        return number

    def _take(self) -> Generator[None, None, int | None]:
        """A ticket of its own for this replica; None once all chunks are answered."""
        pause = _Pause(self.board)
        while True:
            started, cpu = time.perf_counter(), time.thread_time()
            number = self.board.take(self._known)
            self.pull_seconds += time.perf_counter() - started
            self.pull_cpu_seconds += time.thread_time() - cpu
            if number is not None:
                self.pulls += 1
                return number
            ended = self.board.announced(END) is not None  # asked before the look at what was announced before it
            if self._take_announcement():
                continue
            if ended:
                return None
            yield
            pause.wait()

    def _find(self, number: int) -> Ticket:
        """The chunk of a ticket, which is announced."""
        while not self._windows or number >= self._windows[-1].end:
            if not self._take_announcement():  # the first rank of the replica has read it
                time.sleep(POLL_SECONDS[0])
        while number >= self._windows[0].end:
            self._windows.pop(0)  # numbers only grow
        found = self._windows[0]
        chunk = found.todo[number - found.first]
        return Ticket((found.window, chunk), chunk in found.failed)

    def _take_announcement(self) -> bool:
        text = self.board.announced(f"predict/window/{self._read}")
        if text is None:
            return False
        self._windows.append(_Announced(*json.loads(text)))
        self._known = self._windows[-1].end
        self._read += 1
        return True

    def _wait_for(self, name: str) -> Generator[None, None, str]:
        pause = _Pause(self.board)
        while (text := self.session.store.announced(name)) is None:
            yield
            pause.wait()
        return text


class _Pause:
    """Pauses that become longer, and end with an error if the process that reads has failed."""

    def __init__(self, board: Board) -> None:
        self.board, self.seconds = board, POLL_SECONDS[0]

    def wait(self) -> None:
        self.board.check()
        time.sleep(self.seconds)
        self.seconds = min(POLL_SECONDS[1], self.seconds * 1.5)
