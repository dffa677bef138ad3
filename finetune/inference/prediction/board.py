"""What ranks and the process that reads share while chunks are answered: announcements, tickets that are taken, chunks that
are done.

Ticket n is the n-th chunk that was announced. Where all ranks are one process group (another launcher's, or a single
replica), the group's store holds all that (`GroupBoard`), and the failure of a rank ends everything. Where each replica is a
group of its own, a folder holds it, which outlives them: `ReplicaBoard` is a rank's way to it and `ReaderBoard` the other
side's, which also hears of replicas that died, and which tickets they held. Then ranks stay until all chunks are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from finetune.distributed.failure import PeerFailed
from finetune.distributed.folder_store import FolderStore
from finetune.distributed.replica_place import ReplicaPlace
from finetune.inference.prediction.parts import ChunkName

if TYPE_CHECKING:
    from finetune.distributed.session import Session  # the process that starts ranks does without torch

TICKETS, FAILED = "predict/tickets", "predict/failed"
DONE, DIED, AT_WORK = "predict/done", "predict/died", "predict/at-work"
NOBODY = "-"  # in place of a replica that could not say that a chunk is done
END = "predict/end"  # announced when all chunks are answered


class Board(Protocol):
    """A rank's side. rank: its number among the ranks of all replicas."""

    rank: int

    def announce(self, name: str, text: str) -> None: ...

    def announced(self, name: str) -> str | None: ...

    def begin(self, now: float) -> float:
        """This rank is ready for tickets. When it was in its first attempt: while its replica was down, it was idle."""
        ...

    def take(self, known: int) -> int | None:
        """The next ticket; None if it is none of the first `known`, which are announced. The lead of a replica calls it."""
        ...

    def finish(self, chunk: ChunkName) -> None:
        """The chunk's answers are published."""
        ...

    def check(self) -> None:
        """Raises: PeerFailed if the process that reads the data failed, and nobody ends this rank for it."""
        ...


class ReadersBoard(Protocol):
    """The side of the process that reads, used by one thread."""

    def announce(self, name: str, text: str) -> None: ...

    def announced(self, name: str) -> str | None: ...

    def count_done(self, windows: Iterable[int]) -> dict[int, int]:
        """Window -> its chunks that were answered in this launch. Empty if there are no more than at the last look."""
        ...

    def lost_chunks(self, named: Callable[[int], ChunkName | None]) -> list[ChunkName]:
        """Chunks that replicas held when they died, since the last look, and did not say they had answered.

        named: the chunk of a ticket; None if its window is in the output.
        """
        ...

    def finish(self, chunk: ChunkName) -> None:
        """In place of the rank that published its answers, and died before it could say so."""
        ...


class GroupBoard:
    """Both sides, in the store of a process group."""

    def __init__(self, session: Session) -> None:
        self.rank = session.rank
        self.announce, self.announced = session.store.announce, session.store.announced
        self._session = session
        self._pending: int | None = None
        self._done = 0

    def begin(self, now: float) -> float:
        return now

    def take(self, known: int) -> int | None:
        """A counter gives out numbers, also those of chunks that are yet to be announced: these wait here."""
        if self._pending is None:
            self._pending = self._session.store.count(TICKETS) - 1
        if self._pending >= known:
            return None
        ticket, self._pending = self._pending, None
        return ticket

    def finish(self, chunk: ChunkName) -> None:
        self._session.store.count(f"{DONE}/{chunk[0]}")
        self._session.store.count(DONE)

    def check(self) -> None:
        if self.announced(FAILED) is not None:
            raise PeerFailed("the process that reads the data failed")

    def count_done(self, windows: Iterable[int]) -> dict[int, int]:
        done = self._session.store.count(DONE, 0)
        if done == self._done:
            return {}
        self._done = done
        return {window: self._session.store.count(f"{DONE}/{window}", 0) for window in windows}

    def lost_chunks(self, named: Callable[[int], ChunkName | None]) -> list[ChunkName]:
        """None: where one rank of a group dies, all are started again."""
        return []


class ReplicaBoard:
    """A rank's side of the folder. Every ticket that is taken is entered with the replica and its attempt."""

    def __init__(self, store: FolderStore, place: ReplicaPlace, rank: int) -> None:
        self.rank = rank
        self.announce, self.announced = store.announce, store.announced
        self._store, self._owner = store, _owner(place.number, place.attempt)

    def begin(self, now: float) -> float:
        name = f"{AT_WORK}/{self.rank}"
        first = (self.announced(name) or str(now)).split()[0]
        self.announce(name, f"{first} {self._owner}")
        return float(first)

    def take(self, known: int) -> int | None:
        return self._store.append(TICKETS, self._owner, below=known)

    def finish(self, chunk: ChunkName) -> None:
        _enter_done(self._store, chunk, self._owner)

    def check(self) -> None:
        """Nothing: the process that started this rank ends it."""


class ReaderBoard:
    """The other side of the folder."""

    def __init__(self, store: FolderStore) -> None:
        self.announce, self.announced = store.announce, store.announced
        self._store = store
        self._done: dict[int, set[int]] = {}  # window -> chunks
        self._done_read = self._died_read = 0
        self._has_more = False

    def count_done(self, windows: Iterable[int]) -> dict[int, int]:
        self._read_done()
        if not self._has_more:
            return {}
        self._has_more = False
        kept = {window: self._done.get(window, set()) for window in windows}
        self._done = dict(kept)
        return {window: len(chunks) for window, chunks in kept.items()}

    def lost_chunks(self, named: Callable[[int], ChunkName | None]) -> list[ChunkName]:
        died = self._store.entries(DIED, self._died_read)
        self._died_read += len(died)
        if not died:
            return []
        held = [named(ticket) for ticket, owner in enumerate(self._store.entries(TICKETS)) if owner in died]
        self._read_done()
        return [chunk for chunk in held if chunk is not None and chunk[1] not in self._done.get(chunk[0], ())]

    def finish(self, chunk: ChunkName) -> None:
        _enter_done(self._store, chunk, NOBODY)

    def at_work(self, ranks: int) -> list[int]:
        """Those of so many ranks that have begun, and whose replicas live."""
        died, found = set(self._store.entries(DIED)), list[int]()
        for rank in range(ranks):
            text = self.announced(f"{AT_WORK}/{rank}")
            if text is not None and text.split(maxsplit=1)[1] not in died:
                found.append(rank)
        return found

    def _read_done(self) -> None:
        entries = self._store.entries(DONE, self._done_read)
        self._done_read += len(entries)
        for entry in entries:
            window, chunk = map(int, entry.split()[:2])
            self._done.setdefault(window, set()).add(chunk)
            self._has_more = True


def note_death(store: FolderStore, number: int, attempt: int) -> None:
    """A replica died: none of its processes is left, and what is to be noted of its chunks is noted."""
    store.append(DIED, _owner(number, attempt))


def count_chunks(store: FolderStore, number: int, attempt: int) -> tuple[int, int]:
    """(chunks that a replica took in an attempt, those of them that it answered)."""
    owner = _owner(number, attempt)
    taken = store.entries(TICKETS).count(owner)
    return taken, sum(entry.split(maxsplit=2)[2] == owner for entry in store.entries(DONE))


def _owner(number: int, attempt: int) -> str:
    return f"{number} {attempt}"


def _enter_done(store: FolderStore, chunk: ChunkName, owner: str) -> None:
    store.append(DONE, f"{chunk[0]} {chunk[1]} {owner}")
