"""The store of a process group: counters, texts under names and places to meet, all without a collective.

`FolderStore` (folder_store.py) is the one that outlives the processes that use it; this one is gone with rank 0.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.distributed_c10d import _get_default_store

from finetune.distributed.engines.accelerator import GIVE_UP_AFTER
from finetune.distributed.failure import PeerFailed

ARRIVAL_SECONDS = 0.01  # between two looks at the store


class GroupStore:
    """A rank's way to the store of its process group, which must be open. Any thread may use it."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._arrivals: dict[str, int] = {}  # place -> how often this rank has come there

    def arrive(self, place: str, *, seconds: float | None) -> bool:
        """Whether every rank has come to this place, or does within `seconds` (None: within the limit of collectives).

        All ranks call it, but a rank may have missed collectives before: this is none, it counts in the group's store.
        """
        self._arrivals[place] = self._arrivals.get(place, 0) + 1
        key, expected = f"finetune/{place}", self._arrivals[place] * self._world_size
        store = _get_default_store()
        ends = time.monotonic() + (GIVE_UP_AFTER.total_seconds() if seconds is None else seconds)
        arrived = store.add(key, 1)
        while arrived < expected and time.monotonic() < ends:
            time.sleep(ARRIVAL_SECONDS)
            arrived = store.add(key, 0)
        return arrived >= expected

    def count(self, name: str, amount: int = 1) -> int:
        """Add to a counter that the ranks share, and return its sum so far, this amount included; it begins at 0.

        No collective: any rank calls it whenever it likes, from any thread. `amount` 0 reads it.
        """
        with _store_errors():
            return int(_get_default_store().add(f"finetune/counter/{name}", amount))

    def announce(self, name: str, text: str) -> None:
        """Let every rank read `text` under a name, see `announced`. No collective."""
        with _store_errors():
            _get_default_store().set(f"finetune/announced/{name}", text)

    def announced(self, name: str) -> str | None:
        """What some rank announced under a name; None if none has yet. Never waits."""
        key = f"finetune/announced/{name}"
        with _store_errors():
            store = _get_default_store()
            return store.get(key).decode() if store.check([key]) else None


@contextmanager
def _store_errors() -> Iterator[None]:
    """The store is gone when rank 0 is: that is no failure of this rank, and not of what it works on."""
    try:
        yield
    except RuntimeError as error:
        raise PeerFailed(f"rank 0 can no longer be reached: {error}") from error
