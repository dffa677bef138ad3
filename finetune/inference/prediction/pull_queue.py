"""A rank takes the next chunk whenever it has time for one: a shared counter gives out numbers, and no rank waits for another.

Rank 0 announces windows in the group's store, with the chunks that are to be answered; number n of the counter is the n-th
of them over all windows. The ranks of a replica take the number that its first rank took.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from finetune.distributed.failure import PeerFailed
from finetune.distributed.session import Session
from finetune.inference.prediction.feeder import FedWindow
from finetune.inference.prediction.parts import ChunkName

TICKETS, END, FAILED = "predict/tickets", "predict/end", "predict/failed"
POLL_SECONDS = (0.002, 0.05)  # between two looks at the store: at first, and at most


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


def announce_window(session: Session, index: int, first: int, window: FedWindow) -> None:
    """index: of the window within this launch, from 0. first: number of its first chunk over all windows."""
    text = json.dumps([window.number, first, window.todo, window.failed])
    session.announce(f"predict/window/{index}", text)


def announce_end(session: Session, total: int) -> None:
    """No chunk follows after the first `total`."""
    session.announce(END, str(total))


def done_name(window: int) -> str:
    """The counter of a window's chunks that were answered in this launch."""
    return f"predict/done/{window}"


@dataclass
class PullQueue:
    """One rank's way to chunks.

    waited: seconds in which there was nothing to take, not counting the wait for the end. pulls, pull_seconds: of the
    counter.
    """

    session: Session
    waited: float = 0.0
    pulls: int = 0
    pull_seconds: float = 0.0
    _windows: list[_Announced] = field(default_factory=list)
    _read: int = 0
    _taken: int = 0

    def tickets(self) -> Iterator[Ticket]:
        """Chunks for this rank, until there are no more."""
        while (ticket := self._find(self._next_number())) is not None:
            yield ticket

    def _next_number(self) -> int:
        started = time.perf_counter()
        session = self.session
        place = f"predict/replica/{session.replica}/{self._taken}"
        if session.is_replica_lead:
            number = session.count(TICKETS) - 1
            if session.split > 1:
                session.announce(place, str(number))
        else:
            number = int(self._wait_for(place))
        self._taken += 1
        self.pulls += 1
        self.pull_seconds += time.perf_counter() - started
        return number

    def _find(self, number: int) -> Ticket | None:
        """The chunk of a number; waits until it is announced. None if there are fewer chunks."""
        waits = _Waits(self)
        while True:
            while self._windows and number >= self._windows[0].first + len(self._windows[0].todo):
                self._windows.pop(0)  # numbers only grow
            if self._windows and number >= self._windows[0].first:
                found = self._windows[0]
                chunk = found.todo[number - found.first]
                waits.end()
                return Ticket((found.window, chunk), chunk in found.failed)
            if not self._take_announcement():
                end = self.session.announced(END)
                if end is not None and not self._take_announcement():
                    waits.end(counted=number < int(end))
                    if number >= int(end):
                        return None
                waits.pause()

    def _take_announcement(self) -> bool:
        text = self.session.announced(f"predict/window/{self._read}")
        if text is None:
            return False
        self._windows.append(_Announced(*json.loads(text)))
        self._read += 1
        return True

    def _wait_for(self, name: str) -> str:
        waits = _Waits(self)
        while (text := self.session.announced(name)) is None:
            waits.pause()
        return text


class _Waits:
    """Pauses that become longer, and end with an error if rank 0 has failed."""

    def __init__(self, queue: PullQueue) -> None:
        self.queue, self.started, self.seconds = queue, 0.0, POLL_SECONDS[0]

    def pause(self) -> None:
        if not self.started:
            self.started = time.perf_counter()
        if self.queue.session.announced(FAILED) is not None:
            raise PeerFailed("the process that reads the data failed")
        time.sleep(self.seconds)
        self.seconds = min(POLL_SECONDS[1], self.seconds * 1.5)

    def end(self, *, counted: bool = True) -> None:
        if self.started and counted:
            self.queue.waited += time.perf_counter() - self.started
        self.started = 0.0
