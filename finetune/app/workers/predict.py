"""One rank of `finetune predict`: a whole model, chunks pulled from a queue. Rank 0 also starts the process that reads the data
and writes the output, and reports.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.app.asked_model import load_found
from finetune.app.model_sources import find_model
from finetune.app.predict_options import PredictOptions, check_replicas
from finetune.app.workers.logs import redirect_output
from finetune.app.workers.prediction import Prediction
from finetune.app.workers.prediction_report import PredictionProgress, describe_resumed, report
from finetune.data.images import allow_pixels
from finetune.distributed.env import DistributedEnv, from_environ
from finetune.distributed.failure import PeerFailed, report_failures
from finetune.distributed.launch import SUPERVISED
from finetune.distributed.session import Session
from finetune.inference.prediction.collector import Collector
from finetune.inference.prediction.feeder import Asked, Feeder, spare_cores
from finetune.inference.prediction.heartbeat import Heartbeat, Listening
from finetune.inference.prediction.keeper import start_keeper
from finetune.inference.prediction.manifest import begin_or_resume, only_one
from finetune.inference.prediction.outcomes import Recorder
from finetune.inference.prediction.outputs import RecordColumns, check_output_name, open_output
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.pictures import prepare_folder
from finetune.inference.prediction.rank_loop import RankLoop
from finetune.inference.prediction.relay import Relay, wait_for_figures
from finetune.inference.prediction.scored_rows import measure_scored
from finetune.inference.prediction.state import State
from finetune.inference.prediction.windows import WINDOW_ROWS
from finetune.models.device import uses_cuda
from finetune.models.placement import Placement
from finetune.terminal import print_line


def work(*, options: PredictOptions) -> None:
    """This process as one of N."""
    env = from_environ()
    rank = env.rank if env else 0
    parts, supervised = Parts(options.output.absolute()), os.environ.get(SUPERVISED)
    redirect_output(rank, Path(supervised or parts.logs))
    if supervised:
        _predict(options, parts, env)
        return
    with report_failures(rank, parts.logs, supervised=False):
        _predict(options, parts, env)


def _predict(options: PredictOptions, parts: Parts, env: DistributedEnv | None) -> None:
    check_output_name(parts.output)
    check_replicas(env.world_size if env else 1, options)  # the ranks may be another launcher's
    if options.max_pixels is not None:
        allow_pixels(options.max_pixels)
    found = find_model(
        options.model,
        checkpoint=options.checkpoint,
        task=options.task,
        trust_remote_code=options.trust_remote_code,
        body=options.embed,
        notify=print_line if env is None or env.rank == 0 else lambda line: None,
    )
    prediction = Prediction.of(found, options, parts)
    with _reading(prediction, env) as reading:
        session = Session.open(
            None, precision=found.precision, cpu=not uses_cuda(), split=options.split, notify=print_line
        )
        if not session.broadcast(reading is not None if session.is_main else None):
            session.close()
            return
        with Heartbeat(session):
            _answer(prediction, session, reading, env)
        session.close()
        if reading is not None:
            prediction.draw()


def _answer(prediction: Prediction, session: Session, reading: _Reading | None, env: DistributedEnv | None) -> None:
    """Answer chunks until there are no more; then, on rank 0, wait until all are written, and report."""
    options, parts = prediction.options, prediction.parts
    relay = reading.relay(session) if reading is not None else None
    model = load_found(
        prediction.found,
        precision=options.precision,  # type: ignore[arg-type]
        quantization=options.quantization,  # type: ignore[arg-type]
        placement=_placement(options, parts, env),
        session=session,
    )
    for line in model.notes if session.is_main else ():
        print_line(line)
    answerer = replace(model, task=prediction.recorder.task).answerer(
        budget=prediction.budget,
        notify=print_line if session.is_main else lambda line: None,
        **prediction.generation,
    )
    loop = RankLoop(session, parts, answerer, prediction.splitter, prediction.recorder, prediction.cost)
    try:
        own = loop.run()
    except PeerFailed:
        if relay is not None:
            relay.wait()  # raises what it was
        raise
    figures = wait_for_figures(session, own.to_dict()) if relay is None else []
    if relay is not None and reading is not None:
        state = relay.wait()
        figures = wait_for_figures(session, own.to_dict())
        reading.progress.close()
        metrics = model.plan.training.metrics
        measured = measure_scored(parts.scored, metrics, model.task.metric_options(prediction.found.artifacts))
        report(parts, reading.before.rows + reading.waiting, state, figures, options, model.name, measured)


def _placement(options: PredictOptions, parts: Parts, env: DistributedEnv | None) -> Placement | None:
    """None for a model that is whole on the device of this rank."""
    if options.split > 1:
        return Placement(slices=options.slices, stages=options.stages)
    if options.layers == 1:
        return None
    first = options.layers * (env.local_rank if env else 0)
    return Placement(layers=tuple(range(first, first + options.layers)), offload=parts.folder / f"offload-{first}")


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
class _Reading:
    """Rank 0's hold on the process that reads and writes. before: the state that this start found. waiting: rows that are
    answered, but not in the output.
    """

    connection: Any
    before: State
    waiting: int
    progress: PredictionProgress

    def relay(self, session: Session) -> Relay:
        return Relay(session, self.connection, self.progress.show, print_line, Listening(session))


@contextmanager
def _reading(prediction: Prediction, env: DistributedEnv | None) -> Iterator[_Reading | None]:
    """On rank 0: start to read, before there are threads and a model. None on other ranks, and where all is done."""
    if env is not None and env.rank:
        yield None
        return
    parts = prediction.parts
    with only_one(parts):
        stream = prediction.open_stream()
        if prediction.options.draw is not None:
            prepare_folder(prediction.options.draw, prediction.recorder.task.card.name, stream)
        state = begin_or_resume(parts, prediction.manifest(stream, WINDOW_ROWS), resumable=stream.resumable)
        if state.finished:
            columns = RecordColumns(prediction.fields, stream.kept, stream.kept_types)
            open_output(parts.output, columns).check_finished(state.position, state.rows)
            print_line(f"{parts.output}: all {state.rows:,} rows are answered already")
            prediction.draw()
            yield None
            return
        waiting = parts.count_answered()
        if state.rows or waiting:
            print_line(describe_resumed(state.rows, waiting))
        task = prediction.recorder.task
        workers = spare_cores(env.local_world_size if env else 1)
        asked = Asked(stream, task.card, prediction.splitter, prediction.cost, prediction.budget, workers, WINDOW_ROWS)
        columns = RecordColumns(prediction.fields, stream.kept, stream.kept_types)
        making = _Making(asked, parts, prediction.recorder, state, columns)
        process, connection = start_keeper(making, prediction.options.max_errors, apart=stream.resumable)
        try:
            yield _Reading(connection, state, waiting, PredictionProgress(state, stream.estimate()))
        finally:
            if hasattr(process, "kill"):
                process.kill()
                process.join()
