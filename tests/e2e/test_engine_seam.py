"""Proves the seam of engines: one of under 80 lines, which only this test registers, trains, checkpoints, resumes and exports
to the same numbers as DistributedDataParallel; and an engine that does not exist, or contradicts the recipe, is a fault.
"""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from finetune.distributed.failure import read_failures
from finetune.recipe.engines import ENGINES, EngineSpec
from finetune.recipe.load import load_recipe
from finetune.tasks import CARDS
from tests.e2e import tiny
from tests.e2e.inside import USR1, train_here
from tests.engines import single
from tests.ranks import RankError

SINGLE = EngineSpec("single", single.SingleEngine, "one process, plain PyTorch")
OFF = ("parallel.deepspeed=none", "training.epochs=2")


def train_with_single(*arguments):
    with mock.patch.dict(ENGINES, {"single": SINGLE}):
        train_here(*arguments)


def train(workers, run_dir, *sets, signals=None):
    """On one rank, with the engine that only this test registers; the run's folder."""
    run, sets = workers.folder / run_dir, ["parallel.engine=single", *OFF, *sets]
    workers.pool.run(1, train_with_single, str(workers.folder), "tiny.yaml", str(run), sets, "auto", signals or {})
    return run


def test_an_engine_that_nobody_else_knows(workers):
    assert len(Path(single.__file__).read_text().splitlines()) < 80
    with pytest.raises(RankError):
        train(workers, "single", signals={7: (0, USR1)})
    (failure,) = read_failures(workers.folder / "single" / "logs")
    assert "stopped after step 7 of 12" in str(failure.to_error())
    run, known = train(workers, "single"), workers.train(1, "known", *OFF)
    assert tiny.comparable(run) == tiny.comparable(known)
    ours, theirs = (load_file(one / "model" / "model.safetensors") for one in (run, known))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert json.loads((run / "plan.json").read_text())["machine"]["engine"] == "single"


def test_a_contradiction_is_told_before_anything_starts(workplace):
    def faults(*sets):
        with pytest.raises(Exception) as caught:
            load_recipe(workplace / "tiny.yaml", sets, CARDS, here=False)
        return str(caught.value)

    assert "no such engine" in faults("parallel.engine=dpp") and "ddp" in faults("parallel.engine=dpp")
    assert "is for the engine deepspeed" in faults("parallel.engine=ddp")  # tiny.yaml says zero2
    assert "parallel.deepspeed is none" in faults("parallel.engine=deepspeed", "parallel.deepspeed=none")
    assert "parallel.pipeline is 1" in faults("parallel.engine=pipeline", "parallel.deepspeed=none")
