"""Proves that a CNN in a pipeline of two ranks is trained, evaluated, saved and exported as one process does it; that it
goes on under another layout; and that a stage that fails or dies ends the others.
"""

import time

import pytest
import torch
import yaml
from transformers import AutoModelForImageClassification

from finetune.errors import Stopped
from tests.distributed import pictures
from tests.e2e import tiny
from tests.e2e.conftest import Ended
from tests.e2e.inside import KILL, TERM
from tests.ranks import RankError

STEPS, EVERY = 9, 3
ALONE = "parallel.pipeline=1"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def digits(workplace):
    """The recipe: a ResNet on digits, two stages, micro-batches that the batch does not divide into."""
    changes = {
        "training": {"steps": STEPS},
        "evaluation": {"every": EVERY, "metrics": ["accuracy"], "best": "loss", "samples": 2},
        "checkpoint": {"every": EVERY, "keep": 2},
    }
    values = pictures.recipe(pipeline=2, **changes)
    (workplace / "digits.yaml").write_text(yaml.safe_dump(values))
    return "digits.yaml"


@pytest.fixture(scope="module")
def alone(workers, digits):
    return workers.train(1, "digits-alone", ALONE, recipe=digits)


@pytest.fixture(scope="module")
def split(workers, digits):
    return workers.train(2, "digits-split", recipe=digits)


def same_weights(ours, theirs):
    one, other = (AutoModelForImageClassification.from_pretrained(run / "model") for run in (ours, theirs))
    tensors = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.allclose(tensor.float(), tensors[name].float(), rtol=1e-4, atol=1e-5), name
    assert len(tensors) > 20


def same_rows(ours, theirs, split):
    rows = [[(row["step"], row["loss"]) for row in tiny.rows(run, split)] for run in (ours, theirs)]
    assert [step for step, _ in rows[0]] == [step for step, _ in rows[1]]
    assert [loss for _, loss in rows[0]] == pytest.approx([loss for _, loss in rows[1]], rel=1e-5)
    return len(rows[0])


def test_the_same_rows_and_the_same_model(split, alone):
    assert same_rows(split, alone, "train") == STEPS
    assert same_rows(split, alone, "validation") == STEPS // EVERY
    same_weights(split, alone)
    ours, theirs = (tiny.predictions(run, "validation", STEPS) for run in (split, alone))
    assert list(ours) and ours.keys() == theirs.keys()
    assert {i: row["prediction"] for i, row in ours.items()} == {i: row["prediction"] for i, row in theirs.items()}


def test_the_idle_share_is_in_every_row_and_the_stages_are_told(split, alone):
    assert all(0 < row["bubble"] < 1 for row in tiny.rows(split))
    assert not any("bubble" in row for row in tiny.rows(alone))
    said = (split / "logs" / "said-0.txt").read_text()
    assert "stage 2 of 2: resnet.encoder.stages." in said
    assert "5 micro-batches of 5 per step, so each stage is idle for at least 17% of a step" in said


def test_a_run_goes_on_from_a_pipeline_on_one_process_and_back(workers, digits, alone):
    legs = [(2, (), (0, TERM)), (1, (ALONE,), (0, TERM)), (2, (), (1, TERM)), (2, (), None)]
    for leg, (ranks, sets, signal) in enumerate(legs, start=1):
        if signal is None:
            run = workers.train(ranks, "digits-winding", *sets, recipe=digits)
            break
        with pytest.raises(Ended) as ended:
            workers.train(ranks, "digits-winding", *sets, recipe=digits, signals={2 * leg: signal})
        assert isinstance(ended.value.first, Stopped), ended.value
    assert same_rows(run, alone, "train") == STEPS
    same_weights(run, alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stage_that_dies_ends_the_other(workers, digits, rank):
    began = time.monotonic()
    with pytest.raises((Ended, RankError)):
        workers.train(2, f"digits-dies-{rank}", recipe=digits, signals={4: (rank, KILL)})
    assert time.monotonic() - began < 60, "nobody waits for a rank that is gone"


def test_an_error_of_the_last_stage_is_told_alone(workers, digits):
    began = time.monotonic()
    with pytest.raises(Ended) as ended:
        workers.train(2, "digits-fault", recipe=digits, signals={5: (1, 0)})
    first, *others = ended.value.failures
    assert first.rank == 1 and first.what == "ValueError: a fault of this rank alone"
    assert all(other.echo for other in others), ended.value
    assert time.monotonic() - began < 60
    again = workers.train(2, "digits-fault", recipe=digits)
    assert len(tiny.rows(again)) == STEPS
