"""Proves that `python -m finetune train` and `evaluate` work as workers of anyone's launcher, with the same numbers, however
often they are stopped, and that they say why they end.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e import tiny
from tests.e2e.conftest import MINUTES
from tests.faults import run_finetune, start_finetune, text_appears
from tests.warm_start import run_warm_tasks, slurm_tasks

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


@pytest.mark.parametrize("launcher", ["accelerate", "deepspeed"])
def test_a_foreign_launcher_gives_the_same_numbers(launcher, workplace, undisturbed):
    arguments = ["train", "tiny.yaml", "--run-dir", launcher]
    finished = run_finetune(arguments, MINUTES, folder=workplace, program=command_of(launcher))
    assert finished.code == 0, finished.output
    assert finished.output.count(f"step {tiny.STEPS}/{tiny.STEPS}") == 1, "one rank speaks"
    assert tiny.comparable(workplace / launcher) == tiny.comparable(undisturbed[0])
    assert (workplace / launcher / "model" / "model.safetensors").is_file()


def test_ranks_of_torchrun_say_once_what_is_odd_and_what_is_refused(workplace, undisturbed):
    arguments = ["train", "tiny.yaml", "--run-dir", str(undisturbed[0]), "--set", "training.learning_rate=0.5"]
    refused = run_finetune(arguments, MINUTES, folder=workplace, program=command_of("torchrun"))
    assert refused.output.count("a learning rate of 0.5 is far above") == 1, refused.output
    assert refused.output.count("error: ") == refused.output.count("holds a run of another recipe") == 1, refused.output


def test_ranks_of_torchrun_refuse_a_mistyped_target_once_and_leave_no_run_folder(workplace):
    arguments = ["train", "tiny.yaml", "--run-dir", "never-made", "--set", "adapter.targets=[qury]"]
    refused = run_finetune(arguments, MINUTES, folder=workplace, program=command_of("torchrun"))
    assert refused.output.count("adapter.targets: no module is called 'qury'") == 1, refused.output
    assert "query" in refused.output and not (workplace / "never-made").exists()


def test_ranks_of_torchrun_that_are_stopped_save_and_the_whole_has_the_same_numbers(workplace, undisturbed):
    """First SIGUSR1 to one rank, while nobody reads what is printed any more. Then SIGTERM to torchrun, which passes it on to
    every process: the loader processes must not end before their rank has finished its step.
    """
    run, arguments = workplace / "torchrun", ["train", "tiny.yaml", "--run-dir", "torchrun", "--set", "data.workers=1"]
    line = subprocess.list2cmdline([*command_of("torchrun"), *arguments])
    with start_finetune(["-c", f"{line} 2>&1 | head -1"], folder=workplace, program=("bash",)) as running:
        wait_for_step(run, 3, running)
        running.send(signal.SIGUSR1, rank=1)
        ended = running.wait(MINUTES)
        wait_for_end(running)
    assert len(ended.output.splitlines()) == 1
    first = stopped_at(run)
    log = (run / "logs" / "rank-0.log").read_text() + (run / "logs" / "rank-1.log").read_text()
    assert f"stopped: after step {first} of {tiny.STEPS}" in log and "Traceback" not in log, log
    with start_finetune(arguments, folder=workplace, program=command_of("torchrun")) as running:
        wait_for_step(run, first + 5, running)
        running.send(signal.SIGTERM)
        ended = running.wait(MINUTES)
        wait_for_end(running)
    assert f"stopped: after step {stopped_at(run)} of {tiny.STEPS}" in ended.output
    assert (
        "Resume with the same launcher: ... -m finetune train torchrun/recipe.yaml --run-dir torchrun" in ended.output
    )
    finished = run_finetune(arguments, MINUTES, folder=workplace, program=command_of("torchrun"))
    assert finished.code == 0, finished.output
    assert finished.output.count(f"step {tiny.STEPS}/{tiny.STEPS}") == 1, "one rank speaks"
    assert tiny.comparable(run) == tiny.comparable(undisturbed[0])
    ours, theirs = ((one / "model" / "model.safetensors").read_bytes() for one in (run, undisturbed[0]))
    assert ours == theirs
    assert not list((run / "logs").glob(".failure*")), "nothing stays reserved"


def wait_for_step(run, step, running):
    moment, end = text_appears(run / "metrics.jsonl", f'"step": {step},'), time.monotonic() + MINUTES
    while not moment():
        assert running.process.poll() is None and time.monotonic() < end, running.output()
        time.sleep(0.02)


def wait_for_end(running):
    """Of every process: a launcher may end before its ranks."""
    end = time.monotonic() + 60
    while running.survivors():
        assert time.monotonic() < end, running.output()
        time.sleep(0.05)


def stopped_at(run):
    """The step after which the run was stopped, whose checkpoint is there."""
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    last = tiny.rows(run)[-1]["step"]
    assert (run / "checkpoints" / f"step-{last:08d}" / "manifest.json").is_file()
    return last


def test_an_evaluation_that_fails_in_a_foreign_launcher_says_why(workplace, undisturbed):
    """Its standard error goes to a log, which is not that of the training, nor are its failures."""
    run = workplace / "undisturbed"
    before = sorted(path.name for path in (run / "logs").glob("*.*"))
    arguments = [
        "evaluate",
        "undisturbed",
        "--name",
        "fails",
        "--checkpoint",
        str(run / "checkpoints" / "step-99999999"),
    ]
    ended = run_finetune(arguments, MINUTES, folder=workplace, environment={"RANK": "0", "WORLD_SIZE": "1"})
    assert ended.code == 2 and "error: " in ended.output and "step-99999999" in ended.output, ended.output
    assert sorted(path.name for path in (run / "logs").glob("*.*")) == before
    assert (run / "logs" / "evaluate-fails" / "rank-0.log").is_file()


@pytest.fixture(scope="module")
def evaluated(workplace, undisturbed, finetune):
    """The figures of one rank without a launcher."""
    finished = finetune("evaluate", "undisturbed", "--name", "alone", "--processes", "1")
    assert finished.code == 0, finished.output
    return figures(workplace, "alone")


def figures(workplace, name):
    return json.loads((workplace / "undisturbed" / "evaluations" / name / "figures.json").read_text())


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_a_foreign_launcher_evaluates_to_the_same_figures(launcher, workplace, evaluated, pool):
    arguments = ["evaluate", "undisturbed", "--name", f"by-{launcher}"]
    if launcher == "srun":
        ends = run_warm_tasks(pool, arguments, MINUTES, slurm_tasks(2), folder=workplace)
    else:
        ends = [run_finetune(arguments, MINUTES, folder=workplace, program=command_of(launcher))]
    assert [end.code for end in ends] == [0] * len(ends), ends
    ours = figures(workplace, f"by-{launcher}")
    assert ours.keys() == evaluated.keys()
    for name, value in evaluated.items():
        if isinstance(value, float) and name != "time":
            assert ours[name] == pytest.approx(value, rel=1e-5), name
