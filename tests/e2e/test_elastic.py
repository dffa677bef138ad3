"""Proves that a run goes on under other numbers of ranks and other ZeRO stages: the same examples, the same losses.

Dropout is off: which rank draws for which example changes with their number.
"""

import json
import shutil

import pytest

from finetune.errors import Stopped
from tests.e2e import tiny
from tests.e2e.conftest import Ended
from tests.e2e.inside import TERM, USR1, ids_by_step

LEGS = [(2, "zero2"), (3, "zero3"), (1, "zero1"), (2, "none"), (3, "zero2")]
STEPS = 18
pytestmark = pytest.mark.timeout(900)  # all legs are one fixture


@pytest.fixture(scope="module")
def calm(workplace):
    """The recipe without dropout, 18 steps, evaluated every 6."""
    model = tiny.recipe()["model"]
    model["config"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    training = {**tiny.recipe()["training"], "epochs": STEPS * tiny.GLOBAL_BATCH // tiny.TRAIN_ROWS}
    evaluation = {"every": 6, "metrics": [], "best": "loss", "samples": 0}
    return tiny.write_recipe(workplace, "calm.yaml", model=model, training=training, evaluation=evaluation).name


@pytest.fixture(scope="module")
def straight(workers, calm):
    return workers.train(2, "straight", recipe=calm)


@pytest.fixture(scope="module")
def winding(workers, calm):
    """Stopped every 3 steps by a signal to one rank, and gone on with under another layout."""
    for leg, (ranks, stage) in enumerate(LEGS[:-1], start=1):
        signals = {3 * leg: (leg % ranks, USR1 if leg % 2 else TERM)}
        with pytest.raises(Ended) as ended:
            workers.train(ranks, "winding", f"parallel.deepspeed={stage}", recipe=calm, signals=signals)
        assert isinstance(ended.value.first, Stopped), ended.value
        assert f"stopped after step {3 * leg} of {STEPS}" in str(ended.value)
        evaluated = [row["step"] for row in tiny.rows(workers.folder / "winding", "validation")]
        assert evaluated == list(range(6, 3 * leg, 6)), "what is due at the step of a stop comes when it is resumed"
    ranks, stage = LEGS[-1]
    return workers.train(ranks, "winding", f"parallel.deepspeed={stage}", recipe=calm)


def test_the_same_examples_in_every_step(straight, winding):
    assert ids_by_step(winding) == ids_by_step(straight)
    assert {len(ids) for ids in ids_by_step(straight).values()} == {tiny.GLOBAL_BATCH}


def test_the_same_losses(straight, winding):
    ours, theirs = tiny.losses(winding), tiny.losses(straight)
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1))
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-5)
    for split in ("validation", "test"):
        rows = [{row["step"]: row["loss"] for row in tiny.rows(run, split)} for run in (winding, straight)]
        assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    ours, theirs = (json.loads((run / "run.json").read_text())["summary"] for run in (winding, straight))
    assert ours["best_step"] == theirs["best_step"] > 0
    assert ours["best_value"] == pytest.approx(theirs["best_value"], rel=1e-5)


def test_a_run_that_ends_after_its_last_step_loses_no_figures(workers, calm):
    """As a kill between the last checkpoint and the summary leaves it: the figures come from the checkpoint."""
    run = workers.train(1, "ended", "parallel.deepspeed=none", recipe=calm)
    record = json.loads((run / "run.json").read_text())
    whole = record["summary"]
    assert whole["last_loss"] == tiny.rows(run, "validation")[-1]["loss"]
    (run / "run.json").write_text(json.dumps({**record, "status": "failed", "summary": {}}))
    shutil.rmtree(run / "model")
    workers.train(1, "ended", "parallel.deepspeed=none", recipe=calm)
    assert len(tiny.losses(run)) == STEPS, "no step was made again"
    assert json.loads((run / "run.json").read_text())["summary"] == whole


def test_the_same_model(straight, winding):
    from safetensors.torch import load_file

    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (winding, straight))
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        assert (weights - theirs[name]).abs().max() < 1e-5, name


@pytest.mark.parametrize(
    ("stage", "speed"), [("zero2", "[1.0, 0.5]"), ("none", "[1.0, 0.25]"), ("zero1", "auto"), ("zero3", "auto")]
)
def test_shares_by_speed_change_who_computes_and_nothing_else(workers, calm, straight, stage, speed):
    """Given or measured; training, evaluation and the ids of each step."""
    name = f"speed-{stage}-{speed.strip('[]').replace(', ', '-')}"
    run = workers.train(2, name, f"parallel.deepspeed={stage}", f"parallel.rank_speed={speed}", recipe=calm)
    assert ids_by_step(run) == ids_by_step(straight)
    assert list(tiny.losses(run).values()) == pytest.approx(list(tiny.losses(straight).values()), rel=1e-5)
    found, wanted = ([row["loss"] for row in tiny.rows(one, "validation")] for one in (run, straight))
    assert found == pytest.approx(wanted, rel=1e-5)
