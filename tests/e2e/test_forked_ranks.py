"""Proves that the ranks of `finetune train` on a CPU are forked from one process that has imported what they need.

Whatever goes wrong there, they are started one by one and train as well, only later, so that nothing else would show it.
"""

import signal

import psutil
import pytest

from finetune.distributed.forking import NAME_OF_RANK
from tests.e2e.conftest import MINUTES
from tests.faults import start_finetune, text_appears


@pytest.mark.parametrize("deepspeed", ["none", "zero2"])
def test_ranks_are_forked(workplace, tmp_path, deepspeed):
    run = tmp_path / "run"
    command = ["train", "tiny.yaml", "--run-dir", str(run), "--processes", "2", "--set", "training.epochs=100000"]
    command += ["--set", f"parallel.deepspeed={deepspeed}"]
    with start_finetune(command, folder=workplace, environment={"CUDA_VISIBLE_DEVICES": ""}) as running:
        while not text_appears(run / "metrics.jsonl", '"step": 1,')():
            assert running.process.poll() is None, running.output()
        names = {child.name() for child in psutil.Process(running.process.pid).children()}
        running.send(signal.SIGTERM)
        assert running.wait(MINUTES).code == 75
    assert {f"{NAME_OF_RANK}{rank}" for rank in range(2)} <= names, (run / "logs/launcher.log").read_text()
