"""Proves that `python -m finetune train` and `evaluate` work as workers of anyone's launcher, with the same numbers."""

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from tests.e2e import tiny
from tests.e2e.conftest import MINUTES
from tests.faults import run_finetune, start_finetune

BIN = Path(sys.executable).parent
ACCELERATE = ("--mixed_precision", "no", "--dynamo_backend", "no", "--use_deepspeed", "-m", "finetune")
LAUNCHERS = {
    "accelerate": ("accelerate", "launch", "--num_processes", "2", "--main_process_port", "PORT", *ACCELERATE),
    "torchrun": ("torchrun", "--nproc_per_node", "2", "--master_port", "PORT", "-m", "finetune"),
    "deepspeed": ("deepspeed", "--num_gpus", "2", "--master_port", "PORT", "--module", "finetune"),
}


def command_of(launcher):
    """What stands before `train` or `evaluate`, with a free port. Skips a launcher that is not installed."""
    program, *words = LAUNCHERS[launcher]
    if not (BIN / program).exists() and shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return [str(BIN / program), *(free_port() if word == "PORT" else word for word in words)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_foreign_launcher_gives_the_same_numbers(launcher, workplace, undisturbed):
    arguments = ["train", "tiny.yaml", "--run-dir", launcher]
    finished = run_finetune(arguments, MINUTES, folder=workplace, program=command_of(launcher))
    assert finished.code == 0, finished.output
    assert finished.output.count(f"step {tiny.STEPS}/{tiny.STEPS}") == 1, "one rank speaks"
    assert tiny.comparable(workplace / launcher) == tiny.comparable(undisturbed[0])
    assert (workplace / launcher / "model" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def evaluated(workplace, undisturbed):
    """The figures of one rank without a launcher."""
    arguments = ["evaluate", "undisturbed", "--name", "alone", "--processes", "1"]
    finished = run_finetune(arguments, MINUTES, folder=workplace)
    assert finished.code == 0, finished.output
    return figures(workplace, "alone")


def figures(workplace, name):
    return json.loads((workplace / "undisturbed" / "evaluations" / name / "figures.json").read_text())


@pytest.mark.parametrize("launcher", [*LAUNCHERS, "srun"])
def test_a_foreign_launcher_evaluates_to_the_same_figures(launcher, workplace, evaluated):
    arguments = ["evaluate", "undisturbed", "--name", f"by-{launcher}"]
    if launcher == "srun":  # the variables that Slurm sets for each task; srun itself is not needed
        ends = [task.wait(MINUTES) for task in start_tasks(arguments, workplace)]
    else:
        ends = [run_finetune(arguments, MINUTES, folder=workplace, program=command_of(launcher))]
    assert [end.code for end in ends] == [0] * len(ends), ends
    ours = figures(workplace, f"by-{launcher}")
    assert ours.keys() == evaluated.keys()
    for name, value in evaluated.items():
        if isinstance(value, float) and name != "time":
            assert ours[name] == pytest.approx(value, rel=1e-5), name


def start_tasks(arguments, folder):
    common = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    common |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        start_finetune(
            arguments, folder=folder, environment={**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        )
        for rank in range(2)
    ]
