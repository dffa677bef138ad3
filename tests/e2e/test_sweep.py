"""Proves that a sweep survives its own death and that of its trials, that the better half goes on with its full schedule,
and that the same holds for real trainings.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import tiny
from tests.e2e.conftest import MINUTES
from tests.faults import Finished, Running, run_finetune, start_finetune

PROGRAM = (sys.executable, "-m", "tests.e2e.sweep_program")
RATES = "training.learning_rate=1e-3,2e-3,4e-3,3e-4"  # the best first


@pytest.fixture
def place(workplace: Path, tmp_path: Path) -> Path:
    tiny.write_recipe(tmp_path, data=tiny.data_of(workplace))
    return tmp_path


def words(*more: str, grid: str = RATES) -> list[str]:
    fixed = ["--set", "evaluation.best=accuracy", "--sweep-dir", "swept", "--processes", "1"]
    return ["sweep", "tiny.yaml", "--grid", grid, *fixed, *more]


def sweep(place: Path, *more: str, grid: str = RATES) -> Finished:
    return run_finetune(words(*more, grid=grid), MINUTES, folder=place, program=PROGRAM)


def wait_for(running: Running, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + MINUTES
    while not condition():
        assert running.process.poll() is None and time.monotonic() < end, running.output()
        time.sleep(0.02)


def trial(place: Path, number: int) -> dict[str, Any]:
    return json.loads((place / "swept" / f"trial-{number:02d}" / "run.json").read_text())


def state(place: Path) -> dict[str, Any]:
    return json.loads((place / "swept" / "sweep.json").read_text())


def lengths(place: Path, count: int) -> list[int]:
    """The last step of each trial."""
    return [trial(place, number)["sessions"][-1]["step"] for number in range(1, count + 1)]


def test_the_better_half_goes_on_and_the_same_command_after_kills_gives_the_same(place: Path) -> None:
    for when in ("trial-02 starts", "trial-01 goes on"):
        with start_finetune(words(), folder=place, program=PROGRAM) as running:
            wait_for(running, lambda when=when, running=running: when in running.output())
            running.process.kill()
            running.process.wait()
            wait_for_end = time.monotonic() + 30
            while running.survivors():  # the trial saves, although the sweep is gone
                assert time.monotonic() < wait_for_end
                time.sleep(0.02)
    finished = sweep(place)
    assert finished.code == 0, finished.output
    ends = lengths(place, 4)
    assert ends[0] == 40 and trial(place, 1)["status"] == "done"
    assert 20 <= ends[1] < 40 and 10 <= ends[2] < 20 and 10 <= ends[3] < 20, ends  # rungs at 1/4, 1/2
    assert {trial(place, number)["facts"]["total_steps"] for number in range(1, 5)} == {40}  # never a shorter schedule
    for number in range(1, 5):  # nothing computed twice, nothing left out
        sessions = trial(place, number)["sessions"]
        for one, following in itertools.pairwise(sessions):
            assert following["start_step"] in (one.get("step"), 0)
    assert "best    trial-01: accuracy 1 (learning_rate=1e-3)" in finished.output
    assert (
        "finetune train tiny.yaml --set evaluation.best=accuracy --set training.learning_rate=1e-3" in finished.output
    )
    assert state(place)["status"] == "done" and state(place)["best"] == "trial-01"
    again = sweep(place)
    assert (
        again.code == 0 and "starts" not in again.output.replace("starting", "") and "best    trial-01" in again.output
    )
    other = sweep(place, grid="training.learning_rate=1e-3,5e-3")
    assert other.code == 2 and "1e-3,2e-3,4e-3,3e-4 in the sweep, 1e-3,5e-3 now" in other.output
    recipe = sweep(place, "--set", "training.warmup=0.5")
    assert recipe.code == 2 and "training.warmup: 3.0 in the sweep, 0.5 now" in recipe.output
    whole = sweep(place, "--no-halving")
    assert whole.code == 0 and lengths(place, 4) == [40] * 4, whole.output


def test_failing_trials_are_recorded_and_the_others_go_on(place: Path) -> None:
    finished = sweep(place, "--parallel", "2", grid="training.label_smoothing=0.0,0.5,0.6,0.7,0.1")
    assert finished.code == 0, finished.output
    assert state(place)["failures"] == {
        "trial-02": "rank 0, step 6: the loss is nan",
        "trial-03": "was killed by SIGKILL, perhaps for lack of memory",
    }
    assert trial(place, 1)["status"] == "done" and trial(place, 5)["status"] == "done"
    assert "failed  trial-03: was killed by SIGKILL" in finished.output
    retried = sweep(place, "--retry-failed", grid="training.label_smoothing=0.0,0.5,0.6,0.7,0.1")
    assert retried.code == 0 and retried.output.count("failed: ") == 2, retried.output
    alone = run_finetune(
        ["sweep", "tiny.yaml", "--grid", "training.label_smoothing=0.5", "--sweep-dir", "alone"],
        MINUTES,
        folder=place,
        program=PROGRAM,
    )
    assert alone.code == 1 and "no trial finished" in alone.output


def test_a_stop_saves_every_trial_and_two_sweeps_do_not_share_a_folder(place: Path) -> None:
    with start_finetune(words("--parallel", "2"), folder=place, program=PROGRAM) as running:
        wait_for(running, lambda: all((place / "swept" / f"trial-0{n}" / "metrics.jsonl").is_file() for n in (1, 2)))
        second = sweep(place)
        assert second.code == 2 and "the sweep is being trained by process" in second.output
        running.send(signal.SIGINT)
        ended = running.wait(MINUTES)
    assert ended.code == 75 and "run the same command to resume" in ended.output
    assert [trial(place, number)["status"] for number in (1, 2)] == ["stopped", "stopped"]
    (place / "tiny.yaml").write_text((place / "tiny.yaml").read_text() + "\n# edited\n")
    assert sweep(place).code == 0  # a comment is no difference


def test_a_recipe_that_changes_while_a_sweep_runs_ends_it(place: Path) -> None:
    with start_finetune(words(), folder=place, program=PROGRAM) as running:
        wait_for(running, lambda: "trial-01 starts" in running.output())
        (place / "tiny.yaml").write_text((place / "tiny.yaml").read_text() + "\n# edited\n")
        ended = running.wait(MINUTES)
    assert ended.code == 2 and "the recipe was changed while the sweep ran" in ended.output, ended.output


def test_real_trials_pause_and_resume(place: Path) -> None:
    """A trial goes on while the sweep reads its evaluation and asks it to pause, some tenths of a second at most: 60 steps
    are left to it. In four it was done before it could be asked.
    """
    done = run_finetune(
        [
            *["sweep", "tiny.yaml", "--grid", "training.learning_rate=1e-9,1e-3", "--sweep-dir", "swept"],
            *["--set", "training.epochs=20", "--set", "checkpoint.every=1000", "--processes", "1"],
            *["--set", "parallel.deepspeed=none", "--metric", "loss"],
        ],
        MINUTES,
        folder=place,
    )
    assert done.code == 0, done.output
    assert [trial(place, number)["status"] for number in (1, 2)] == ["stopped", "done"], done.output
    first = trial(place, 1)
    assert first["facts"]["total_steps"] / 2 <= first["sessions"][-1]["step"] < first["facts"]["total_steps"]
    assert (place / "swept" / "sweep.html").is_file() and (place / "swept" / "trial-02" / "model").is_dir()
