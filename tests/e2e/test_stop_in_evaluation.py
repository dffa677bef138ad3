"""Proves that a training which is stopped in the middle of its evaluations is, in the end, the training that was not.

Two ranks, without ZeRO and with stages 2 and 3: stopped in an evaluation, in the same one again, in the last one, and in that
of the test split, each time by a signal to one rank. Then rows, predictions, best checkpoint and model are equal, bit for bit.
"""

import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from finetune.errors import EXIT_STOPPED, Stopped
from tests.e2e import tiny
from tests.e2e.conftest import MINUTES, Ended
from tests.e2e.inside import TERM, USR1, ids_by_step
from tests.faults import start_finetune

pytestmark = pytest.mark.timeout(900)  # a story is one fixture
STEPS, EVERY = 12, 6
EPOCHS = STEPS * tiny.GLOBAL_BATCH // tiny.TRAIN_ROWS
SETS = (f"training.epochs={EPOCHS}", "parallel.micro_batch=2", f"evaluation.every={EVERY}", "checkpoint.every=100")
STOPS = [
    (f"validation-step-{EVERY:08d}", 0, TERM),
    (f"validation-step-{EVERY:08d}", 1, USR1),  # the one that the first stop put off
    (f"validation-step-{STEPS:08d}", 1, TERM),
    (f"test-step-{STEPS:08d}", 0, USR1),
]


@dataclass
class Story:
    """run: stopped again and again. whole: never. said: how each start ended; after it: names in predictions/, the newest
    checkpoint.
    """

    whole: Path
    run: Path
    said: list[str] = field(default_factory=list)
    predictions: list[list[str]] = field(default_factory=list)
    newest: list[str] = field(default_factory=list)


@pytest.fixture(scope="module", params=["none", "zero2", "zero3"])
def story(request, workers):
    layout = (f"parallel.deepspeed={request.param}", *SETS)
    told = Story(workers.train(2, f"whole-{request.param}", *layout), workers.folder / f"stopped-{request.param}")
    for evaluation, rank, number in STOPS:
        with pytest.raises(Ended) as ended:
            workers.train(2, told.run, *layout, signals={evaluation: (rank, number)})
        assert isinstance(ended.value.first, Stopped), ended.value
        told.said.append(str(ended.value.first))
        told.predictions.append(names(told.run / "predictions"))
        told.newest.append(max(names(told.run / "checkpoints", "step-*")))
    workers.train(2, told.run, *layout)
    return told


def names(folder, pattern="*.jsonl*"):
    return sorted(path.name for path in folder.glob(pattern))


def test_each_stop_saves_all_steps_and_leaves_nothing_of_the_evaluation(story):
    again = f"stopped after step {EVERY} of {STEPS}; its checkpoint is saved; it is evaluated when the run resumes"
    assert [again in said for said in story.said] == [True, True, False, False], story.said
    assert f"stopped after step {STEPS} of {STEPS}; its checkpoint is saved" in story.said[2]
    assert "in the evaluation of test, which begins anew when the run resumes" in story.said[3]
    assert story.newest == [f"step-{step:08d}" for step in (EVERY, EVERY, STEPS, STEPS)]
    validation = [f"validation-step-{step:08d}.jsonl" for step in (EVERY, STEPS)]
    assert story.predictions == [[], [], validation[:1], validation]


def test_rows_and_predictions_are_those_of_the_run_that_nothing_stopped(story):
    found, expected = tiny.comparable(story.run), tiny.comparable(story.whole)
    assert found == expected and len(expected) == STEPS + STEPS // EVERY + 1
    for path in (story.whole / "predictions").glob("*.jsonl"):
        assert (story.run / "predictions" / path.name).read_bytes() == path.read_bytes()
    assert names(story.run / "predictions") == names(story.whole / "predictions")
    assert ids_by_step(story.run) == ids_by_step(story.whole)


def test_the_best_checkpoint_and_the_model_are_the_same(story):
    found, expected = (json.loads((run / "run.json").read_text())["summary"] for run in (story.run, story.whole))
    same = [key for key in expected if key not in ("seconds", "model")]
    assert {key: found[key] for key in same} == {key: expected[key] for key in same} and "best_step" in same
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (story.run, story.whole)]
    assert weights[0] == weights[1]


def test_a_stop_in_the_evaluation_before_the_first_step_begins_anew(workers):
    sets = ("training.epochs=1", "evaluation.at_start=true", "parallel.deepspeed=none", "parallel.micro_batch=2")
    whole = workers.train(2, "whole-start", *sets)
    with pytest.raises(Ended) as ended:
        workers.train(2, "stopped-start", *sets, signals={"validation-step-00000000": (1, TERM)})
    assert isinstance(ended.value.first, Stopped) and "stopped before the first step" in str(ended.value.first)
    stopped = workers.folder / "stopped-start"
    assert names(stopped / "predictions") == [] and names(stopped / "checkpoints", "step-*") == []
    workers.train(2, stopped, *sets)
    assert tiny.comparable(stopped) == tiny.comparable(whole) and len(tiny.rows(stopped, "validation")) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, EXIT_STOPPED)])
def test_a_signal_ends_finetune_evaluate_at_once_and_leaves_nothing(workers, number, code):
    """It was said to save a checkpoint, and what a rank had written stayed, in a folder that no later evaluation used."""
    run = workers.train(1, "evaluated-here", "training.epochs=1", "parallel.deepspeed=none", "parallel.processes=1")
    folder = run / "evaluations" / f"stopped-{code}"
    command = ["evaluate", str(run), "--name", folder.name, "--processes", "1"]
    with start_finetune(command, folder=workers.folder) as running:
        while not folder.is_dir():
            assert running.process.poll() is None, running.output()
            time.sleep(0.02)
        running.rank(0)
        (folder / "predictions.jsonl.incomplete").write_text('{"id": 0}\n')  # as a rank that is killed leaves it
        running.send(number)
        finished = running.wait(MINUTES)
        assert finished.code == code and "checkpoint" not in finished.output, finished.output
        end = time.monotonic() + 10
        while left := running.survivors():  # Python's own helpers end when they read the end of the process they served
            assert time.monotonic() < end, [process.cmdline() for process in left]
            time.sleep(0.02)
    assert not folder.exists()
