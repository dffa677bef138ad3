"""`model.compile: layers`, truly compiled by inductor: losses and names of weights are those of a run without it, dropout
included; its checkpoints go on without it; each compilation is reported.
"""

import json

import pytest
from safetensors.torch import load_file

from tests.e2e import tiny
from tests.faults import run_finetune

PLAIN = ("parallel.deepspeed=none", "training.epochs=1", "evaluation.every=3", "checkpoint.every=3")


@pytest.mark.timeout(900)  # inductor calls the C++ compiler
def test_a_compiled_run_and_one_that_goes_on_without(workers):
    run = workers.folder / "compiled"
    sets = [part for one in (*PLAIN, "parallel.processes=1", "model.compile=layers") for part in ("--set", one)]
    arguments = ["train", str(workers.folder / "tiny.yaml"), "--run-dir", str(run), *sets]
    finished = run_finetune(arguments, timeout=600, folder=workers.folder)
    assert finished.code == 0, finished.output
    told = [line for line in finished.output.splitlines() if "model.compile: compiled" in line]
    assert 1 <= len(told) <= 4 and "BertLayer for 2 layers" in told[0]
    assert json.loads((run / "plan.json").read_text())["machine"]["compile"] == "layers"
    start = run / "checkpoints" / "step-00000003"
    later, plain = workers.train(1, "later", *PLAIN, resume=str(start)), workers.train(1, "uncompiled", *PLAIN)
    ours, rest, theirs = tiny.losses(run), tiny.losses(later), tiny.losses(plain)
    assert len(ours) == 6 and ours == pytest.approx(theirs, rel=1e-5)
    assert list(rest) == [4, 5, 6] and rest == pytest.approx({step: theirs[step] for step in rest}, rel=1e-5)
    ours, theirs = ([row["loss"] for row in tiny.rows(one, "validation")] for one in (run, plain))
    assert len(ours) == 2 and ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = (load_file(one / "model" / "model.safetensors") for one in (run, plain))
    assert ours.keys() == theirs.keys()
