"""One rank of `finetune predict`: a whole model, chunks pulled from a queue. Where the ranks are one process group, rank 0 also
starts the process that reads the data and writes the output, and reports.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from finetune.app.asked_model import AskedModel, load_found
from finetune.app.model_sources import find_model
from finetune.app.predict_options import PredictOptions, check_replicas
from finetune.app.workers.logs import redirect_output
from finetune.app.workers.prediction import Prediction
from finetune.app.workers.prediction_reading import BEGUN, NOTHING_LEFT, Reading, read, reading
from finetune.data.images import allow_pixels
from finetune.distributed.env import DistributedEnv, from_environ
from finetune.distributed.failure import PeerFailed, report_failures
from finetune.distributed.folder_store import FolderStore
from finetune.distributed.launch import SUPERVISED
from finetune.distributed.replica_place import READER, ReplicaPlace, rank_number
from finetune.distributed.session import Session
from finetune.inference.prediction.board import Board, GroupBoard, ReplicaBoard
from finetune.inference.prediction.heartbeat import Heartbeat, Listening
from finetune.inference.prediction.output_name import check_output_name
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.rank_loop import RankFigures, RankLoop
from finetune.inference.prediction.relay import announce_figures, gather_figures
from finetune.models.device import describe_unused_gpu, uses_cuda
from finetune.models.kernel_choices import choose_kernels
from finetune.models.placement import Placement
from finetune.terminal import print_line

LOOK_SECONDS = 0.05  # between two looks for the reader


def work(*, options: PredictOptions) -> None:
    """This process as one of N."""
    rank, place = rank_number(), ReplicaPlace.from_environ()
    parts, supervised = Parts(options.output.absolute()), os.environ.get(SUPERVISED)
    redirect_output(rank, Path(supervised or parts.logs))
    if supervised:
        _predict(options, parts, rank, place)
        return
    with report_failures(rank, parts.logs, supervised=False):
        _predict(options, parts, rank, place)


def _predict(options: PredictOptions, parts: Parts, rank: int, place: ReplicaPlace | None) -> None:
    env = from_environ()
    check_output_name(parts.output)
    if rank != READER:
        check_replicas(env.world_size if env else 1, options)  # the ranks may be another launcher's
    if options.max_pixels is not None:
        allow_pixels(options.max_pixels)
    tells = rank == 0 if place is None else place.is_reader
    found = find_model(
        options.model,
        checkpoint=options.checkpoint,
        task=options.task,
        trust_remote_code=options.trust_remote_code,
        body=options.embed,
        notify=print_line if tells else lambda line: None,
    )
    prediction = Prediction.of(found, options, parts)
    if place is None:
        _predict_in_one_group(prediction, env)
    elif place.is_reader:
        read(prediction, place)
    else:
        _predict_in_replica(prediction, rank, place)


def _predict_in_replica(prediction: Prediction, rank: int, place: ReplicaPlace) -> None:
    """A rank whose replica is a launch of its own; a reader is there, and whoever started them ends this rank with it."""
    store = FolderStore(Path(place.folder))
    while (begun := store.announced(BEGUN)) is None:
        time.sleep(LOOK_SECONDS)
    if begun == NOTHING_LEFT:
        return
    session = _open_session(prediction)
    board = ReplicaBoard(store, place, rank)
    figures = _answer(prediction, session, board, tells=rank == 0 and not place.attempt)
    announce_figures(board, figures.to_dict())
    session.close()


def _predict_in_one_group(prediction: Prediction, env: DistributedEnv | None) -> None:
    with _reading_on_main(prediction, env) as reading:
        session = _open_session(prediction)
        if not session.broadcast(reading is not None if session.is_main else None):
            session.close()
            return
        with Heartbeat(session):
            _answer_and_report(prediction, session, reading)
        session.close()
        if reading is not None:
            prediction.draw()


@contextmanager
def _reading_on_main(prediction: Prediction, env: DistributedEnv | None) -> Iterator[Reading | None]:
    """On rank 0: start to read. None on other ranks, and where all is done."""
    if env is not None and env.rank:
        yield None
        return
    with reading(prediction, env.local_world_size if env else 1) as found:
        yield found


def _open_session(prediction: Prediction) -> Session:
    precision, size = prediction.found.precision, prediction.options.replica_size
    if rank_number() == 0 and (note := describe_unused_gpu()):
        print_line(note)
    return Session.open(None, precision=precision, cpu=not uses_cuda(), replica_size=size, notify=print_line)


def _answer_and_report(prediction: Prediction, session: Session, reading: Reading | None) -> None:
    """Answer chunks; then, on rank 0, wait until all are written, and report."""
    board = GroupBoard(session)
    relay = reading.relay(board, Listening(session)) if reading is not None else None
    try:
        figures = _answer(prediction, session, board, tells=session.is_main)
    except PeerFailed:
        if relay is not None:
            relay.wait()  # raises what it was
        raise
    announce_figures(board, figures.to_dict())
    if relay is not None and reading is not None:
        state = relay.wait()
        reading.report(state, gather_figures(board, lambda: range(session.world_size)))


def _answer(prediction: Prediction, session: Session, board: Board, *, tells: bool) -> RankFigures:
    """Load the model, and answer chunks until there are no more. tells: whether this rank talks to the user."""
    model = _load(prediction, session, board.rank)
    for line in model.notes if tells else ():
        print_line(line)
    answerer = replace(model, task=prediction.recorder.task).answerer(
        budget=prediction.budget,
        notify=print_line if tells else lambda line: None,
        **prediction.generation,
    )
    parts, splitter, recorder = prediction.parts, prediction.splitter, prediction.recorder
    return RankLoop(session, board, parts, answerer, splitter, recorder, prediction.cost).run()


def _load(prediction: Prediction, session: Session, rank: int) -> AskedModel:
    options = prediction.options
    model = load_found(
        prediction.found,
        precision=options.precision,  # type: ignore[arg-type]
        quantization=options.quantization,  # type: ignore[arg-type]
        placement=_placement(options, prediction.parts, rank),
        session=session,
    )
    choose_kernels(model.plan.precision)  # which --precision may have changed
    return model


def _placement(options: PredictOptions, parts: Parts, rank: int) -> Placement | None:
    """None for a model that is whole on the device of this rank. rank: its number among all ranks."""
    if options.replica_size > 1:
        return Placement(slices=options.slices, stages=options.stages)
    if options.layers == 1:
        return None
    env = from_environ()
    first = options.layers * (env.local_rank if env else 0)  # of the GPUs that this rank sees
    layers = tuple(range(first, first + options.layers))
    return Placement(layers=layers, offload=parts.folder / f"offload-{options.layers * rank}")
