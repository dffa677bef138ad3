"""Between the process that reads and writes (keeper.py) and the ranks: what it says goes to the board, and what the ranks
enter there goes back to it. Chunks of a replica that died are given out again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from finetune.errors import FinetuneError, TrainingFailed
from finetune.inference.prediction.board import END, FAILED, Board, ReadersBoard
from finetune.inference.prediction.feeder import FedWindow
from finetune.inference.prediction.heartbeat import Listening
from finetune.inference.prediction.parts import ChunkName, Parts
from finetune.inference.prediction.pull_queue import announce_chunks
from finetune.inference.prediction.state import State

LOOK_SECONDS = 0.05  # between two looks at what ranks have counted


Progress = Callable[[State | None, int], None]


class Relay:
    """A thread of rank 0, or of the reader. progress: called in it with the state after the last window that is in the output
    (None: after none in this launch) and the rows that are answered behind it. note: with lines for the user. listening: to
    the other ranks.
    """

    def __init__(
        self,
        board: ReadersBoard,
        parts: Parts,
        connection: Connection,
        progress: Progress,
        note: Callable[[str], None],
        listening: Listening | None = None,
        *,
        how_ended: Callable[[], str] = lambda: "ended",
    ) -> None:
        """how_ended: asked of the process that reads and writes, when its connection is closed, as the rest of a sentence."""
        self._board, self._parts = board, parts
        self._connection, self._progress, self._note = connection, progress, note
        self._listening, self._how_ended = listening, how_ended
        self._before: State | None = None
        self._open: dict[int, _OpenWindow] = {}  # those that are not in the output
        self._dealt: list[_Dealt] = []  # of open windows
        self._index, self._tickets = 0, 0
        self._all_read = self._ended = False
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
                    self._give_again()
                    self._count_done()
                if self._listening is not None:
                    self._listening.check()
        except FinetuneError as error:
            self._error = error
        except (EOFError, OSError):
            self._error = TrainingFailed(
                f"the process that reads the data and writes the output {self._how_ended()}",
                remedy="Run the same command again: what is answered stays.",
            )
        except Exception as error:  # shown by rank 0; a thread that ends silently would leave all ranks waiting
            self._error = TrainingFailed(f"{type(error).__name__}: {error}", where="the relay")
        if self._error is not None:
            self._board.announce(FAILED, "1")

    def _take(self, kind: str, *content: Any) -> None:
        if kind == "window":
            window: FedWindow = content[0]
            self._open[window.number] = _OpenWindow(window.rows, window.chunks, len(window.todo))
            self._deal(window.number, window.todo, window.failed)
        elif kind == "end":
            self._all_read = True
            self._end_if_done()
        elif kind == "progress":
            state: State = content[0]
            self._before = state
            self._open = {number: window for number, window in self._open.items() if number >= state.windows}
            self._dealt = [dealt for dealt in self._dealt if dealt.window in self._open]
            self._show()
        elif kind == "note":
            self._note(content[0])
        elif kind == "finished":
            self._state = content[0]
        else:
            self._error = content[0]

    def _deal(self, window: int, todo: list[int], failed: list[int]) -> None:
        announce_chunks(self._board, self._index, self._tickets, window, todo, failed)
        self._dealt.append(_Dealt(window, self._tickets, todo))
        self._index, self._tickets = self._index + 1, self._tickets + len(todo)

    def _give_again(self) -> None:
        """New tickets for the chunks that replicas held when they died, unless they had published the answers."""
        again: dict[int, list[int]] = {}
        for chunk in self._board.lost_chunks(self._named):
            if self._parts.answers(chunk).exists():
                self._board.finish(chunk)
            else:
                again.setdefault(chunk[0], []).append(chunk[1])
        for window, chunks in again.items():
            self._deal(window, chunks, [chunk for chunk in chunks if self._parts.failed((window, chunk)).exists()])

    def _named(self, ticket: int) -> ChunkName | None:
        return next((dealt.chunk(ticket) for dealt in self._dealt if dealt.has(ticket)), None)

    def _count_done(self) -> None:
        """Tell which windows have more answers than before, if any rank has answered a chunk since."""
        if not (counts := self._board.count_done(self._open)):
            return
        for number, window in self._open.items():
            if counts[number] != window.done:
                window.done = counts[number]
                self._connection.send(("done", number, window.done))
        self._end_if_done()
        self._show()

    def _end_if_done(self) -> None:
        """Let the ranks go: no chunk follows, and none is given out again."""
        if self._all_read and not self._ended and all(window.done >= window.todo for window in self._open.values()):
            self._board.announce(END, "1")
            self._ended = True

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


@dataclass(frozen=True)
class _Dealt:
    """Chunks of a window, under tickets from `first` on."""

    window: int
    first: int
    chunks: list[int]

    def has(self, ticket: int) -> bool:
        return self.first <= ticket < self.first + len(self.chunks)

    def chunk(self, ticket: int) -> ChunkName:
        return self.window, self.chunks[ticket - self.first]


def announce_figures(board: Board, own: dict[str, Any]) -> None:
    """What this rank did, for `gather_figures`."""
    board.announce(f"predict/figures/{board.rank}", json.dumps(own))


def gather_figures(
    board: Board | ReadersBoard, expected: Callable[[], Iterable[int]], *, seconds: float = 30.0
) -> list[dict[str, Any]]:
    """The figures of the ranks, by their numbers; of those that have announced them in time. No collective.

    expected: the ranks that are still to be waited for, as far as is known now.
    """
    found: dict[int, dict[str, Any]] = {}
    ends = time.monotonic() + seconds
    while True:
        missing = [rank for rank in expected() if rank not in found]
        for rank in missing:
            if (text := board.announced(f"predict/figures/{rank}")) is not None:
                found[rank] = json.loads(text)
        if all(rank in found for rank in missing) or time.monotonic() > ends:
            return [found[rank] for rank in sorted(found)]
        time.sleep(LOOK_SECONDS)
