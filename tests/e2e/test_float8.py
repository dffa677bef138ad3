"""`model.float8` through a whole training, emulated on a CPU, where it is refused otherwise: it is resumed, its checkpoints
hold plain weights, and evaluate, predict and export work with the run on a machine that cannot compute in float8.
"""

import json
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from finetune.recipe import checks
from tests import float8_stand_in
from tests.e2e import tiny
from tests.e2e.inside import train_here
from tests.ranks import RankError

PLAIN = ("parallel.deepspeed=none", "training.epochs=1", "training.precision=bf16", *tiny.NO_DROPOUT)
FLOAT8 = (*PLAIN, "model.float8=tensorwise")


def train_emulated(*arguments):
    float8_stand_in.install()
    here = tuple(check for check in checks.MACHINE_CHECKS if check is not checks.check_float8_machine)
    with mock.patch.object(checks, "MACHINE_CHECKS", here), mock.patch("finetune.app.workers.train.check_float8"):
        train_here(*arguments)
    float8_stand_in.remove()


def train(workers, name, *sets, resume="auto"):
    run = workers.folder / name
    workers.pool.run(1, train_emulated, str(workers.folder), "tiny.yaml", str(run), list(sets), resume, {})
    return run


def test_a_run_in_float8(workers, finetune):
    run, plain = train(workers, "float8", *FLOAT8), train(workers, "bf16", *PLAIN)
    ours, theirs = tiny.losses(run), tiny.losses(plain)
    assert len(ours) == 6 and ours == pytest.approx(theirs, rel=2e-2) and ours != theirs
    assert json.loads((run / "plan.json").read_text())["training"]["float8"] == "tensorwise"
    rest = tiny.losses(train(workers, "resumed", *FLOAT8, resume=str(run / "checkpoints" / "step-00000005")))
    assert list(rest) == [6] and rest[6] == pytest.approx(ours[6], rel=1e-6)
    weights, expected = (load_file(one / "model" / "model.safetensors") for one in (run, plain))
    assert {name: (weight.dtype, weight.shape) for name, weight in weights.items()} == {
        name: (weight.dtype, weight.shape) for name, weight in expected.items()
    }
    assert {weight.dtype for weight in weights.values()} <= {torch.float32, torch.bfloat16}
    evaluated = finetune("evaluate", "float8", "--split", "validation", "--name", "again")
    assert evaluated.code == 0, evaluated.output
    (figures,) = run.glob("evaluations/again*/figures.json")
    trained = tiny.rows(run, "validation")[-1]["loss"]
    assert json.loads(figures.read_text())["loss"] == pytest.approx(trained, rel=1e-6)
    answers = workers.folder / "float8-answers.jsonl"
    predicted = finetune("predict", "float8/model", "--data", "test.csv", "--output", str(answers))
    assert predicted.code == 0 and len(answers.read_text().splitlines()) == 5, predicted.output


def test_this_machine_is_told_what_it_lacks(workers, finetune):
    sets = [part for one in FLOAT8 for part in ("--set", one)]
    finished = finetune("train", "tiny.yaml", "--run-dir", "refused", *sets)
    assert finished.code == 2 and "model.float8" in finished.output and "8.9 or higher" in finished.output
    assert "Traceback" not in finished.output
    with pytest.raises(RankError, match="float8"):
        workers.pool.run(1, train_here, str(workers.folder), "tiny.yaml", "refused", list(FLOAT8), "auto", {})
