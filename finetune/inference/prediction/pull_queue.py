"""A rank takes the next chunk whenever it has time for one: a shared counter gives out numbers, and no rank waits for another.

Rank 0 announces windows in the group's store, with the chunks that are to be answered; number n of the counter is the n-th
of them over all windows. The ranks of a replica take the number that its first rank took.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
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
    """One rank's way to chunks. pulls: numbers taken from the counter; pull_seconds: of them, with the time that this process
    waited for a core and the answer; pull_cpu_seconds: of this thread alone.
    """

    session: Session
    pulls: int = 0
    pull_seconds: float = 0.0
    pull_cpu_seconds: float = 0.0
    _windows: list[_Announced] = field(default_factory=list)
    _read: int = 0
    _taken: int = 0

    def tickets(self) -> Iterator[Ticket | None]:
        """Chunks for this rank, until there are no more. None: there is none yet; asking again waits a moment.

        Raises: PeerFailed if the process that reads the data failed.
        """
        while True:
            number = yield from self._next_number()
            ticket = yield from self._find(number)
            if ticket is None:
                return
            yield ticket

    def _next_number(self) -> Generator[None, None, int]:
        session = self.session
        place = f"predict/replica/{session.replica}/{self._taken}"
        if session.is_replica_lead:
            started, cpu = time.perf_counter(), time.thread_time()
            number = session.count(TICKETS) - 1
            self.pulls += 1
            self.pull_seconds += time.perf_counter() - started
            self.pull_cpu_seconds += time.thread_time() - cpu
            if session.split > 1:
                session.announce(place, str(number))
        else:
            number = int((yield from self._wait_for(place)))
        self._taken += 1
        return number

    def _find(self, number: int) -> Generator[None, None, Ticket | None]:
        """The chunk of a number, once it is announced. None if there are fewer chunks."""
        pause = _Pause(self.session)
        while True:
            while self._windows and number >= self._windows[0].first + len(self._windows[0].todo):
                self._windows.pop(0)  # numbers only grow
            if self._windows and number >= self._windows[0].first:
                found = self._windows[0]
                chunk = found.todo[number - found.first]
                return Ticket((found.window, chunk), chunk in found.failed)
            if not self._take_announcement():
                end = self.session.announced(END)
                if end is not None and number >= int(end):
                    return None
                yield
                pause.wait()

    def _take_announcement(self) -> bool:
        text = self.session.announced(f"predict/window/{self._read}")
        if text is None:
            return False
        self._windows.append(_Announced(*json.loads(text)))
        self._read += 1
        return True

    def _wait_for(self, name: str) -> Generator[None, None, str]:
        pause = _Pause(self.session)
        while (text := self.session.announced(name)) is None:
            yield
            pause.wait()
        return text


class _Pause:
    """Pauses that become longer, and end with an error if rank 0 has failed."""

    def __init__(self, session: Session) -> None:
        self.session, self.seconds = session, POLL_SECONDS[0]

    def wait(self) -> None:
        if self.session.announced(FAILED) is not None:
            raise PeerFailed("the process that reads the data failed")
        time.sleep(self.seconds)
        self.seconds = min(POLL_SECONDS[1], self.seconds * 1.5)
