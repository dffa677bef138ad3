"""Signs of life: rank 0 does not wait for the chunks of a rank that is no longer there.

Most launchers end all ranks when one dies. Others (srun without --kill-on-bad-exit) do not, and no collective is there that
would fail. Every rank counts in the group's store, from a thread, so that a long chunk is no silence.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType

from finetune.distributed.failure import PeerFailed
from finetune.distributed.session import Session
from finetune.errors import FinetuneError, TrainingFailed
from finetune.units import format_seconds

BEAT_SECONDS = 5.0
SILENCE_SECONDS = 120.0  # after which a rank is taken for dead
FAILURES = "predict/failures"


class Heartbeat:
    """Of this rank, while the block runs. All ranks open it."""

    def __init__(self, session: Session, *, seconds: float = BEAT_SECONDS) -> None:
        self._session, self._seconds, self._ended = session, seconds, threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._session.store.count(_beats(self._session.rank))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say whether this rank is done or has failed."""
        self._ended.set()
        self._thread.join()
        with suppress(PeerFailed):  # rank 0 needs nothing more of this one, or has failed and says so
            self._session.store.count(_left(self._session.rank) if error is None else FAILURES)

    def _work(self) -> None:
        try:
            while not self._ended.wait(self._seconds):
                self._session.store.count(_beats(self._session.rank))
        except FinetuneError:
            return  # rank 0 has gone; the main thread will see it


class Listening:
    """Rank 0's look at the others. silence: seconds after which a rank is taken for dead."""

    def __init__(self, session: Session, *, silence: float = SILENCE_SECONDS, every: float = BEAT_SECONDS) -> None:
        self._session, self._silence, self._every = session, silence, every
        now = time.monotonic()
        self._heard = dict.fromkeys(range(1, session.world_size), (0, now))  # rank -> (beats, when they were more)
        self._looked = now

    def check(self) -> None:
        """Look, unless it was done just now. Raises: TrainingFailed that names a silent rank; PeerFailed if one failed."""
        now = time.monotonic()
        if now - self._looked < self._every or not self._heard:
            return
        late = now - self._looked > self._silence / 2  # this process itself was halted: the others could not be heard
        self._looked = now
        if self._session.store.count(FAILURES, 0):
            raise PeerFailed("another rank failed")
        for rank, (before, since) in list(self._heard.items()):
            if self._session.store.count(_left(rank), 0):
                del self._heard[rank]
                continue
            beats = self._session.store.count(_beats(rank), 0)
            if beats != before or late:
                self._heard[rank] = (beats, now)
            elif now - since > self._silence:
                raise TrainingFailed(
                    f"nothing was heard of it for {format_seconds(now - since)}: it was killed, or its machine is gone",
                    where=f"rank {rank}",
                    remedy="Run the same command again to resume: its chunk is answered by whoever takes it.",
                )


def _beats(rank: int) -> str:
    return f"predict/beats/{rank}"


def _left(rank: int) -> str:
    return f"predict/left/{rank}"
