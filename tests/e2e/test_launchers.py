"""Proves that `python -m finetune train` works as one of the workers of anyone's launcher, with the same numbers."""

import shutil
import socket
import sys
from pathlib import Path

import pytest

from tests.e2e import tiny
from tests.e2e.conftest import MINUTES
from tests.faults import run_finetune

BIN = Path(sys.executable).parent
ACCELERATE = ("--mixed_precision", "no", "--dynamo_backend", "no", "--use_deepspeed", "-m", "finetune")
LAUNCHERS = {
    "accelerate": ("accelerate", "launch", "--num_processes", "2", "--main_process_port", "PORT", *ACCELERATE),
    "torchrun": ("torchrun", "--nproc_per_node", "2", "--master_port", "PORT", "-m", "finetune"),
    "deepspeed": ("deepspeed", "--num_gpus", "2", "--master_port", "PORT", "--module", "finetune"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_foreign_launcher_gives_the_same_numbers(launcher, workplace, undisturbed):
    program, *words = LAUNCHERS[launcher]
    if not (BIN / program).exists() and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [str(BIN / program), *(port if word == "PORT" else word for word in words)]
    arguments = ["train", "tiny.yaml", "--run-dir", launcher]
    finished = run_finetune(arguments, MINUTES, folder=workplace, program=command)
    assert finished.code == 0, finished.output
    assert finished.output.count(f"step {tiny.STEPS}/{tiny.STEPS}") == 1, "one rank speaks"
    assert tiny.comparable(workplace / launcher) == tiny.comparable(undisturbed[0])
    assert (workplace / launcher / "model" / "model.safetensors").is_file()
