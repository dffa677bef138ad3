"""Rank 0 between the process that reads and writes (keeper.py) and the ranks: what it says goes into the group's store, and
what the ranks count there goes back to it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from finetune.distributed.session import Session
from finetune.errors import FinetuneError, TrainingFailed
from finetune.inference.prediction.feeder import FedWindow
from finetune.inference.prediction.heartbeat import Listening
from finetune.inference.prediction.pull_queue import FAILED, announce_end, announce_window, done_name
from finetune.inference.prediction.state import State

LOOK_SECONDS = 0.05  # between two looks at what ranks have counted


Progress = Callable[[State | None, int], None]


class Relay:
    """A thread of rank 0. progress: called in it with the state after the last window that is in the output (None: after
    none in this launch) and the rows that are answered behind it. note: with lines for the user. listening: to the
    other ranks.
    """

    def __init__(
        self,
        session: Session,
        connection: Connection,
        progress: Progress,
        note: Callable[[str], None],
        listening: Listening | None = None,
    ) -> None:
        self._session, self._connection, self._progress, self._note = session, connection, progress, note
        self._listening = listening
        self._before: State | None = None
        self._open: dict[int, _OpenWindow] = {}  # those that are not in the output
        self._index, self._chunks, self._done = 0, 0, 0
        self._state: State | None = None
        self._error: FinetuneError | None = None
        self._thread = threading.Thread(target=self._work, name="relay", daemon=True)
        self._thread.start()

    def wait(self) -> State:
        """Until everything is in the output. Raises: FinetuneError as the process that reads and writes did."""
        self._thread.join()
        self.check()
        assert self._state is not None, "the relay ends with a state or an error"
        return self._state

    def check(self) -> None:
        """Raises: the error that ended the process that reads and writes."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while self._state is None and self._error is None:
                if self._connection.poll(LOOK_SECONDS):
                    self._take(*self._connection.recv())
                else:
                    self._count_done()
                if self._listening is not None:
                    self._listening.check()
        except FinetuneError as error:
            self._error = error
        except (EOFError, OSError):
            self._error = TrainingFailed(
                "the process that reads the data and writes the output was killed; the system may have run out of memory",
                remedy="Run the same command again to resume.",
            )
        except Exception as error:  # shown by rank 0; a thread that ends silently would leave all ranks waiting
            self._error = TrainingFailed(f"{type(error).__name__}: {error}", where="the relay of rank 0")
        if self._error is not None:
            self._session.announce(FAILED, "1")

    def _take(self, kind: str, *content: Any) -> None:
        if kind == "window":
            window: FedWindow = content[0]
            self._open[window.number] = _OpenWindow(window.rows, window.chunks, len(window.todo))
            announce_window(self._session, self._index, self._chunks, window)
            self._index, self._chunks = self._index + 1, self._chunks + len(window.todo)
        elif kind == "end":
            announce_end(self._session, content[0])
        elif kind == "progress":
            state: State = content[0]
            self._before = state
            self._open = {number: window for number, window in self._open.items() if number >= state.windows}
            self._show()
        elif kind == "note":
            self._note(content[0])
        elif kind == "finished":
            self._state = content[0]
        else:
            self._error = content[0]

    def _count_done(self) -> None:
        """Tell which windows have more answers than before, if any rank has answered a chunk since."""
        done = self._session.count(done_name(-1), 0)
        if done == self._done:
            return
        self._done = done
        for number, window in self._open.items():
            if window.done < window.todo and (now := self._session.count(done_name(number), 0)) != window.done:
                self._connection.send(("done", number, now))
                window.done = now
        self._show()

    def _show(self) -> None:
        self._progress(self._before, sum(window.answered for window in self._open.values()))


@dataclass
class _OpenWindow:
    """todo: of its chunks, in this launch. done: of them, as far as is known."""

    rows: int
    chunks: int
    todo: int
    done: int = 0

    @property
    def answered(self) -> int:
        """Its rows, about."""
        left = (self.todo - self.done) / self.chunks if self.chunks else 0.0
        return round(self.rows * (1 - left))


def wait_for_figures(session: Session, own: dict[str, Any], *, seconds: float = 30.0) -> list[dict[str, Any]]:
    """The figures of all ranks, on rank 0; of those that have announced them in time. No collective."""
    session.announce(f"predict/figures/{session.rank}", json.dumps(own))
    if not session.is_main:
        return []
    found: dict[int, dict[str, Any]] = {}
    ends = time.monotonic() + seconds
    while len(found) < session.world_size and time.monotonic() < ends:
        for rank in range(session.world_size):
            if rank not in found and (text := session.announced(f"predict/figures/{rank}")) is not None:
                found[rank] = json.loads(text)
        if len(found) < session.world_size:
            time.sleep(LOOK_SECONDS)
    return [found[rank] for rank in sorted(found)]
