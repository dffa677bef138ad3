"""Attacks a training through the shell around it: readers that go away, shells that end, two starts at the same instant."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from finetune.app.runs import leave_folders, take_folder
from tests.e2e import tiny
from tests.e2e.conftest import MINUTES
from tests.faults import start_finetune, text_appears
from tests.ranks import RankError

SETS = ["--set", "parallel.processes=1", "--set", "parallel.deepspeed=none"]
STEPS, SHORT = 12, [*SETS, "--set", "training.epochs=2"]
ENDLESS = [*SETS, "--set", "training.epochs=100000"]


def finetune_line(*arguments):
    """The command as a shell takes it."""
    return subprocess.list2cmdline([sys.executable, "-m", "finetune", *arguments])


def wait_for_step(run, step, running):
    moment, end = text_appears(run / "metrics.jsonl", f'"step": {step},'), time.monotonic() + MINUTES
    while not moment():
        assert time.monotonic() < end, running.output()
        time.sleep(0.05)


def status_of(run):
    return json.loads((run / "run.json").read_text())["status"]


def test_a_reader_that_goes_away_costs_its_lines_and_nothing_else(workplace, tmp_path):
    """`finetune train ... 2>&1 | head -1`: it ends normally, and the logs have the lines."""
    run = tmp_path / "run"
    line = finetune_line("train", "tiny.yaml", "--run-dir", str(run), *SHORT)
    code = tmp_path / "code"
    script = f"({line}; echo code $? > {code}) 2>&1 | head -1; while [ ! -s {code} ]; do sleep 0.1; done"
    with start_finetune(["-c", script], folder=workplace, program=("bash",)) as running:
        ended = running.wait(MINUTES)
    assert code.read_text() == "code 0\n", ended.output
    assert len(ended.output.splitlines()) == 1 and status_of(run) == "done"
    assert [row["step"] for row in tiny.rows(run)] == list(range(1, STEPS + 1))
    assert (run / "model" / "model.safetensors").is_file()
    logged = "".join((run / "logs" / name).read_text() for name in ("rank-0.log", "launcher.log"))
    assert f"step {STEPS}/{STEPS}" in logged and "done in" in logged and "Broken pipe" not in logged
    assert f"model   {run / 'model'}" in logged


@pytest.mark.usefixtures("sighup_heard")
def test_a_shell_that_ends_leaves_the_training_and_the_end_of_the_terminal_stops_it(workplace, tmp_path):
    run = tmp_path / "run"
    line = finetune_line("train", "tiny.yaml", "--run-dir", str(run), *ENDLESS)
    with start_finetune(["-c", f"{line}; true"], folder=workplace, program=("bash",)) as running:
        wait_for_step(run, 3, running)
        supervisor = psutil.Process(running.process.pid).children()[0]
        running.send(signal.SIGTERM)
        running.wait(MINUTES)
        step = tiny.rows(run)[-1]["step"]
        wait_for_step(run, step + 10, running)
        supervisor.send_signal(signal.SIGHUP)
        end = time.monotonic() + MINUTES
        while running.survivors():
            assert time.monotonic() < end, running.output()
            time.sleep(0.1)
        assert "SIGHUP: saving a checkpoint, then ending" in running.output()
        assert "after step" in running.output() and "Traceback" not in running.output()
    assert status_of(run) == "stopped"
    last = tiny.rows(run)[-1]["step"]
    assert (run / "checkpoints" / f"step-{last:08d}" / "manifest.json").is_file()


@pytest.mark.parametrize("named", [True, False], ids=["--run-dir", "the newest unfinished run"])
def test_of_two_starts_at_the_same_instant_one_trains_in_a_folder(workplace, tmp_path, named):
    tiny.write_recipe(tmp_path, data=tiny.data_of(workplace))
    command = ["train", "tiny.yaml", *SHORT, *(["--run-dir", "run"] if named else [])]
    with start_finetune(command, folder=tmp_path) as one, start_finetune(command, folder=tmp_path) as two:
        ended = [one.wait(MINUTES), two.wait(MINUTES)]
    runs = [path.parent for path in tmp_path.glob("**/run.json")]
    assert [status_of(run) for run in runs] == ["done"] * len(runs)
    for run in runs:
        assert [row["step"] for row in tiny.rows(run)] == list(range(1, STEPS + 1)), "one process wrote them"
    codes = sorted(each.code for each in ended)
    told = "".join(each.output for each in ended)
    assert "Traceback" not in told
    if named:
        assert codes == [0, 2] and len(runs) == 1, told
        assert "the run is being trained by process" in told
    else:
        assert codes == [0, 0] and len(runs) == 2, told


def test_a_folder_that_is_trained_in_is_refused_to_ranks_of_another_launcher(workers):
    run = workers.folder / "held"
    take_folder(run)
    try:
        with pytest.raises(RankError, match=f"the run is being trained by process {os.getpid()}"):
            workers.train(2, run)
    finally:
        leave_folders()
    assert not (run / "run.json").exists()


def test_a_limit_of_the_address_space_is_named(workplace, tmp_path):
    line = finetune_line("train", "tiny.yaml", "--run-dir", str(tmp_path / "run"), *SETS)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    script = ["-c", f"ulimit -v 400000; {line}"]
    with start_finetune(script, folder=workplace, program=("bash",), environment=environment) as running:
        ended = running.wait(MINUTES)
    assert ended.code == 1 and "Traceback" not in ended.output, ended.output
    assert "error: not enough memory (" in ended.output and "(ulimit -v)" in ended.output, ended.output
    assert not (tmp_path / "run").exists(), "nothing half"
