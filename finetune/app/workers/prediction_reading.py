"""Beside the ranks of a prediction: the process that reads the data and writes the output, and the report at the end. Rank 0
starts it, or the reader: a process without a model, which outlives the replicas where each of them is a launch of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.app.workers.prediction import Prediction
from finetune.app.workers.prediction_report import PredictionProgress, describe_resumed, report
from finetune.distributed.folder_store import FolderStore
from finetune.distributed.rank_ends import describe_kill
from finetune.distributed.replica_place import ReplicaPlace
from finetune.inference.prediction.board import ReaderBoard, ReadersBoard
from finetune.inference.prediction.collector import Collector
from finetune.inference.prediction.feeder import Asked, Feeder, spare_cores
from finetune.inference.prediction.heartbeat import Listening
from finetune.inference.prediction.keeper import start_keeper
from finetune.inference.prediction.manifest import begin_or_resume, only_one
from finetune.inference.prediction.outcomes import Recorder
from finetune.inference.prediction.outputs import open_output
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.pictures import prepare_folder
from finetune.inference.prediction.record_columns import RecordColumns
from finetune.inference.prediction.relay import Relay, gather_figures
from finetune.inference.prediction.scored_rows import measure_scored
from finetune.inference.prediction.state import State
from finetune.inference.prediction.windows import WINDOW_ROWS
from finetune.terminal import print_line, print_over_progress

BEGUN = "predict/begun"  # announced by the reader, with ...
NOTHING_LEFT = "nothing left"  # ... this text if all rows are answered already
ENDS_SECONDS = 5.0  # from the end of a connection to that of its process


def read(prediction: Prediction, place: ReplicaPlace) -> None:
    """This process as the reader: until everything is in the output, and reported."""
    board = ReaderBoard(FolderStore(Path(place.folder)))
    with reading(prediction, place.ranks) as found:
        board.announce(BEGUN, "" if found is not None else NOTHING_LEFT)
        if found is None:
            return
        state = found.relay(board).wait()
        found.report(state, gather_figures(board, lambda: board.at_work(place.ranks)))
        prediction.draw()


@dataclass(frozen=True)
class _Making:
    """Makes, in the process that reads and writes, what it needs."""

    asked: Asked
    parts: Parts
    recorder: Recorder
    state: State
    columns: RecordColumns

    def __call__(self) -> tuple[Feeder, Collector]:
        output = open_output(self.parts.output, self.columns)
        collector = Collector(self.parts, output, self.recorder, self.state)
        return Feeder(self.asked, self.parts, self.state.windows, self.state.rows), collector


@dataclass
class Reading:
    """The hold on the process that reads and writes, or on the thread that does. before: the state that this start found.
    waiting: rows that are answered, but not in the output.
    """

    prediction: Prediction
    process: Any
    connection: Any
    before: State
    waiting: int
    progress: PredictionProgress

    def relay(self, board: ReadersBoard, listening: Listening | None = None) -> Relay:
        return Relay(
            board,
            self.prediction.parts,
            self.connection,
            self.progress.show,
            print_over_progress,
            listening,
            how_ended=self._how_ended,
        )

    def _how_ended(self) -> str:
        self.process.join(ENDS_SECONDS)
        code = getattr(self.process, "exitcode", None)
        return describe_kill(-code) if code is not None and code < 0 else "ended, and did not say why"

    def report(self, state: State, figures: Sequence[Mapping[str, Any]]) -> None:
        """Print what was done. state: when everything is in the output. figures: of the ranks."""
        self.progress.close()
        prediction = self.prediction
        measured = measure_scored(prediction.parts.scored, prediction.metrics, prediction.metric_options)
        before = self.before.rows + self.waiting
        report(prediction.parts, before, state, figures, prediction.options, prediction.found.name, measured)


@contextmanager
def reading(prediction: Prediction, ranks: int) -> Iterator[Reading | None]:
    """Start to read, before there are threads and a model. None where all is done. ranks: of this machine."""
    parts = prediction.parts
    with only_one(parts):
        stream = prediction.open_stream()
        if prediction.options.draw is not None:
            prepare_folder(prediction.options.draw, prediction.recorder.task.card, stream)
        state = begin_or_resume(parts, prediction.manifest(stream, WINDOW_ROWS), resumable=stream.resumable)
        if state.finished:
            columns = RecordColumns(prediction.fields, stream.kept, stream.kept_types)
            open_output(parts.output, columns).check_finished(state.position, state.rows)
            done = f"all {state.rows:,} rows are answered already" if state.rows else "the data has no rows, as before"
            print_line(f"{parts.output}: {done}")
            prediction.draw()
            yield None
            return
        waiting = parts.count_answered()
        if state.rows or waiting:
            print_line(describe_resumed(state.rows, waiting))
        task = prediction.recorder.task
        workers = spare_cores(ranks)
        asked = Asked(stream, task.card, prediction.splitter, prediction.cost, prediction.budget, workers, WINDOW_ROWS)
        columns = RecordColumns(prediction.fields, stream.kept, stream.kept_types)
        making = _Making(asked, parts, prediction.recorder, state, columns)
        process, connection = start_keeper(making, prediction.options.max_errors, apart=stream.resumable)
        try:
            yield Reading(prediction, process, connection, state, waiting, PredictionProgress(state, stream.estimate()))
        finally:
            if hasattr(process, "kill"):
                process.kill()
                process.join()
