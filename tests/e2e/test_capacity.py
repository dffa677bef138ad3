"""Proves that a training which measures its micro-batches has the losses of one that does not, also when it is resumed on
another number of ranks and measures again; and that the run says what was chosen.

CPUs do not measure: here they may, and every larger size counts as faster, so that no clock decides.
"""

import json
from unittest import mock

import pytest

from finetune.errors import Stopped
from finetune.planning import capacity as rules
from tests.e2e import tiny
from tests.e2e.conftest import Ended
from tests.e2e.inside import TERM, ids_by_step, train_here

STEPS, STOP = 12, 5
SETS = ("parallel.micro_batch=1", "options.max_length=24", "parallel.deepspeed=none", "evaluation.every=6")


def train_measured(*arguments):
    with (
        mock.patch.dict(rules.MEASURED_UP_TO, cpu=512),
        mock.patch.object(rules, "WORTH_GROWING", 0.0),
        mock.patch.object(rules, "SECONDS", 1e9),
    ):
        train_here(*arguments)


@pytest.fixture(scope="module")
def calm(workplace):
    """Without dropout, whose masks depend on micro-batches."""
    model = tiny.recipe()["model"]
    model["config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    training = {**tiny.recipe()["training"], "epochs": STEPS * tiny.GLOBAL_BATCH // tiny.TRAIN_ROWS}
    return tiny.write_recipe(workplace, "small.yaml", model=model, training=training).name


def test_the_losses_are_those_of_fixed_micro_batches(workers, calm, monkeypatch):
    fixed = workers.train(2, "fixed", *SETS, recipe=calm)
    assert json.loads((fixed / "plan.json").read_text())["machine"]["capacity"] == 0
    monkeypatch.setattr("tests.e2e.conftest.train_here", train_measured)
    with pytest.raises(Ended) as ended:
        workers.train(2, "measured", *SETS, recipe=calm, signals={STOP: (1, TERM)})
    assert isinstance(ended.value.first, Stopped), ended.value
    run = workers.folder / "measured"
    capacities = [_capacity(run)]
    workers.train(1, "measured", *SETS, recipe=calm)
    capacities.append(_capacity(run))
    assert 24 < capacities[0] < capacities[1] <= 512, "a single rank has twice as much of a step"
    assert ids_by_step(run) == ids_by_step(fixed)
    ours, theirs = tiny.losses(run), tiny.losses(fixed)
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1))
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-5)


def _capacity(run):
    """Of the latest start; the plan, the record of the run and what the user saw agree."""
    plan = json.loads((run / "plan.json").read_text())
    assert plan["training"]["capacity"] == 24, "what is kept when the run is resumed has not changed"
    capacity = plan["machine"]["capacity"]
    words = json.loads((run / "run.json").read_text())["facts"]["micro_batches"]
    assert (
        words.startswith(f"micro-batches of {capacity} tokens (data.capacity: auto; measured") and " with 24; " in words
    )
    assert words in (run / "logs" / "said-0.txt").read_text()
    return capacity
