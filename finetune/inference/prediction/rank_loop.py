"""What each rank does: pull a chunk, answer it, write its outcomes, until there are no more chunks."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.distributed.session import Session
from finetune.errors import FinetuneError, TrainingFailed
from finetune.inference.answering import Answered, Answerer, Chunk, Outcome, RowError, RowSplitter
from finetune.inference.prediction.board import Board
from finetune.inference.prediction.deaths import Whereabouts
from finetune.inference.prediction.feeder import error_of, load_examples
from finetune.inference.prediction.outcomes import Recorder
from finetune.inference.prediction.parts import ChunkName, Parts, publish
from finetune.inference.prediction.pull_queue import PullQueue, Ticket
from finetune.inference.prediction.spool import Spool
from finetune.inference.prediction.state import State

ANSWERING = "predict/answering"  # announced when a rank has answered a row
WRITING_AHEAD = 4  # chunks whose outcomes wait for the disk

Example = dict[str, Any]


@dataclass
class RankFigures:
    """What a rank did. seconds: from its first pull to its last answer. started, ended: times; started: of the first attempt of
    a replica that was started again, of which the rest tells nothing.

    idle: seconds of them without a chunk to work on. padding, cost: in the unit of costs, over its chunks.
    """

    rank: int
    rows: int = 0
    chunks: int = 0
    seconds: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    idle: float = 0.0
    cost: int = 0
    padding: int = 0
    pulls: int = 0
    pull_seconds: float = 0.0
    pull_cpu_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Loaded:
    """A chunk that was pulled: its examples as they wait on the disk, and the outcomes that are known already."""

    name: ChunkName
    digest: str
    spooled: list[Example]
    known: dict[int, RowError] = field(default_factory=dict)  # index -> why it cannot be answered


class RankLoop:
    """One rank's part of a prediction.

    cost: as the chunks were cut by. Ranks of a replica run it alike; the first of them writes.
    """

    def __init__(
        self,
        session: Session,
        board: Board,
        parts: Parts,
        answerer: Answerer,
        splitter: RowSplitter,
        recorder: Recorder,
        cost: Any,
    ) -> None:
        self.board, self.parts, self.answerer = board, parts, answerer
        self.splitter, self.recorder, self.cost = splitter, recorder, cost
        self.queue = PullQueue(session, board)
        self.figures = RankFigures(board.rank)
        self._at = Whereabouts(parts, board.rank)
        self._loaded: dict[ChunkName, _Loaded] = {}
        self._tickets = self.queue.tickets()
        self._alone: list[_Loaded] = []
        self._ended = self._has_answered = False
        self._last: tuple[float, float] | None = None  # time of the last answer, and seconds idle before it
        self._spools: dict[int, Spool] = {}
        self._writer = _Writer(self._write) if session.is_replica_lead else None
        answerer.failures.answered_elsewhere = self._others_have_answered

    def run(self) -> RankFigures:
        """Answer chunks until all ranks have answered all of them. All ranks call it; none waits for another's chunk.

        Raises: TrainingFailed for a device that no longer works, after it has noted at which chunks that was; Halted for a
        model that fails on every row of all ranks.
        """
        figures = self.figures
        begun = time.time()
        figures.started = self.board.begin(begun)
        try:
            while not self._ended:
                for chunk, outcomes in self.answerer.run(self._chunks()):
                    self._finish(self._loaded.pop(chunk.name), outcomes)
                    self._at.note(self._loaded)
                while self._alone:
                    loaded = self._alone.pop()
                    self._finish(loaded, self._answer_alone(loaded))
                    self._at.note(self._loaded)
        except Exception as error:
            if isinstance(error, TrainingFailed) or not isinstance(error, FinetuneError):
                self._note_failure()  # a full disk, or another rank, is not the fault of these chunks
            raise
        finally:
            if self._writer is not None:
                self._writer.close()
            self._at.close()
        figures.ended, figures.idle = self._last or (begun, 0.0)
        figures.seconds = figures.ended - begun
        figures.pulls, figures.pull_seconds = self.queue.pulls, self.queue.pull_seconds
        figures.pull_cpu_seconds = self.queue.pull_cpu_seconds
        return figures

    def _chunks(self) -> Iterator[Chunk | None]:
        """None where there is nothing to take yet, so that an answerer goes on with what it has.

        It ends with a chunk whose examples are answered one by one, and goes on behind it when called again: no further
        window is read before the oldest one is complete, so such a chunk cannot wait for the end of the input.
        """
        waits_since = 0.0
        for ticket in self._tickets:
            now = time.perf_counter()
            if waits_since:
                self.figures.idle += now - waits_since
            waits_since = now if ticket is None and not self._loaded else 0.0
            if ticket is None:
                yield None
                continue
            loaded, examples = self._load(ticket)
            if ticket.alone:
                self._alone.append(loaded)
                return
            if examples:
                self._loaded[loaded.name] = loaded
                self._at.note(self._loaded)
                yield Chunk(loaded.name, examples)
            else:
                self._finish(loaded, [])
        self._ended = True

    def _load(self, ticket: Ticket) -> tuple[_Loaded, list[Example]]:
        window, number = ticket.name
        if window not in self._spools:
            self._spools = {key: spool for key, spool in self._spools.items() if key > window - 8}
            self._spools[window] = Spool(self.parts.window(window))
        spool = self._spools[window]
        loaded = _Loaded(ticket.name, spool.chunks[number].digest, spool.read(number))
        self._count(loaded)
        if ticket.alone:
            return loaded, []
        examples = []
        for index, item in enumerate(load_examples(self.splitter, loaded.spooled)):
            if isinstance(item, BadRow):
                loaded.known[index] = error_of(item)
            else:
                examples.append(item)
        return loaded, examples

    def _answer_alone(self, loaded: _Loaded) -> list[Outcome]:
        """Example by example. One at which a rank failed before has no answer; a failure now is noted by its index."""
        lost = _read_lost(self.parts, loaded.name)
        outcomes: list[Outcome] = []
        answered = 0
        for index, spooled in enumerate(loaded.spooled):
            (example,) = load_examples(self.splitter, [spooled])
            if index in lost:
                outcomes.append(RowError("failed", "the model, or the device it is on, failed at this row"))
            elif isinstance(example, BadRow):
                outcomes.append(error_of(example))
            else:
                self._at.note([loaded.name], example=index, answered=answered)
                try:
                    ((_, (outcome,)),) = self.answerer.run([Chunk(loaded.name, [example])])
                except Exception:
                    with suppress(OSError), self.parts.lost(loaded.name).open("a") as file:
                        file.write(f"{index}\n")
                    raise
                outcomes.append(outcome)
                answered += 1
        return outcomes

    def _finish(self, loaded: _Loaded, outcomes: Sequence[Outcome]) -> None:
        """outcomes: of the examples that are not known already, in order."""
        rest = iter(outcomes)
        whole = [loaded.known.get(index) or next(rest) for index in range(len(loaded.spooled))]
        self._last = time.time(), self.figures.idle
        self.figures.rows += len(whole)
        self.figures.chunks += 1
        if not self._has_answered and any(isinstance(outcome, Answered) for outcome in whole):
            self._has_answered = True
            self.board.announce(ANSWERING, "1")
        if self._writer is not None:
            self._writer.put((loaded, whole))

    def _write(self, loaded: _Loaded, outcomes: Sequence[Outcome]) -> None:
        content = self.recorder.write(loaded.digest, loaded.spooled, outcomes)
        publish(self.parts.answers(loaded.name), content)
        self.board.finish(loaded.name)

    def _others_have_answered(self) -> bool:
        """Whether some rank has answered a row, in this start or an earlier one."""
        before = State.read(self.parts.state)
        return before.rows > before.failed or self.board.announced(ANSWERING) is not None

    def _count(self, loaded: _Loaded) -> None:
        costs = [max(1, int(self.cost(example))) for example in loaded.spooled]
        self.figures.cost += sum(costs)
        self.figures.padding += len(costs) * max(costs) - sum(costs)

    def _note_failure(self) -> None:
        """For the next start: the chunks at which this rank failed are answered example by example."""
        for name in self._loaded:
            with suppress(OSError):
                self.parts.failed(name).touch()


def _read_lost(parts: Parts, name: ChunkName) -> set[int]:
    try:
        return {int(line) for line in parts.lost(name).read_text().split()}
    except FileNotFoundError:
        return set()


class _Writer:
    """Writes outcomes in a thread of its own, so that a device does not wait for a disk."""

    def __init__(self, write: Any) -> None:
        self._write = write
        self._waiting: queue.Queue[Any] = queue.Queue(WRITING_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def put(self, item: tuple[Any, ...]) -> None:
        """Raises: what an earlier write raised."""
        self._raise()
        self._waiting.put(item)

    def close(self) -> None:
        """Wait until everything is written. Raises: what a write raised."""
        self._waiting.put(None)
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    self._write(*item)
                except BaseException as error:
                    self._error = error


def total_figures(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Idle share, busiest rank and padding over all ranks. ranks: RankFigures as dicts.

    idle_share: of the time from the first pull of any rank to the last answer of any, the part in which ranks had nothing
    to do. busiest_rank: the one that worked longest. padding_share: of all positions computed. queue_share: processor
    time of pulls.
    """
    begun, ended = min(rank["started"] for rank in ranks), max(rank["ended"] for rank in ranks)
    span = max(ended - begun, 1e-9)
    busy = {rank["rank"]: rank["seconds"] - rank["idle"] for rank in ranks}
    cost, padding = sum(rank["cost"] for rank in ranks), sum(rank["padding"] for rank in ranks)
    return {
        "seconds": round(span, 3),
        "idle_share": round(max(0.0, 1 - sum(busy.values()) / (span * len(ranks))), 4),
        "busiest_rank": max(busy, key=lambda rank: busy[rank]),
        "busiest_seconds": round(max(busy.values()), 3),
        "padding_share": round(padding / max(1, cost + padding), 4),
        "queue_share": round(sum(rank["pull_cpu_seconds"] for rank in ranks) / (span * len(ranks)), 6),
    }
