"""Proves that a training that is stopped and killed in every way is, in the end, the undisturbed training.

One run is interrupted five times, each time otherwise, and started again: once automatically, else with the same command.
The tests look at its chapters; the last one compares the whole with the run that nothing disturbed, bit for bit.
"""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from finetune.distributed.temporary_folder import COMPILED
from tests.e2e import tiny
from tests.e2e.conftest import MINUTES
from tests.faults import Finished, Running, start_finetune, text_appears

pytestmark = pytest.mark.timeout(900)  # a story is one fixture


@dataclass
class Story:
    """run: the folder. chapters: how each start ended. left: in TMPDIR. seconds: from a fault to the end of all processes."""

    run: Path
    chapters: dict[str, Finished] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    survivors: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)


def parent(running: Running) -> int:
    return running.process.pid


def rank_1(running: Running) -> int:
    return running.rank(1).pid


# name, signal, of whom, once which steps are logged; options
CHAPTERS: list[tuple[str, int, Callable[[Running], int], tuple[int, ...], tuple[str, ...]]] = [
    ("Ctrl-C", signal.SIGINT, parent, (3,), ()),
    ("SIGUSR1 to rank 1", signal.SIGUSR1, rank_1, (12,), ()),
    ("SIGKILL to rank 1, twice", signal.SIGKILL, rank_1, (22, 33), ("--restarts", "1")),
    ("SIGKILL to all", 0, parent, (43,), ()),
]
KILLED = "SIGKILL to rank 1, twice"


@pytest.fixture(scope="module")
def story(workplace, temporary):
    told = Story(workplace / "story")
    environment = {"TMPDIR": str(temporary), COMPILED: str(workplace / "compiled")}
    for chapter in CHAPTERS:
        play(told, workplace, environment, *chapter)
        told.left[chapter[0]] = empty(temporary)
    command = ["train", "tiny.yaml", "--run-dir", "story", "--set", "tracking.wandb=offline"]
    with start_finetune(command, folder=workplace, environment=environment) as running:
        told.chapters["the end"] = running.wait(MINUTES)
    told.left["the end"] = empty(temporary)
    return told


def empty(folder: Path) -> list[str]:
    """The names of what is removed."""
    names = [path.name for path in folder.iterdir()]
    for name in names:
        shutil.rmtree(folder / name)
    return names


def play(
    told: Story,
    workplace: Path,
    environment: dict[str, str],
    name: str,
    number: int,
    target: Callable[[Running], int],
    steps: tuple[int, ...],
    options: tuple[str, ...],
) -> None:
    """Start it, and let the fault happen each time one of `steps` is logged."""
    arguments = ["train", "tiny.yaml", "--run-dir", "story", *options]
    with start_finetune(arguments, folder=workplace, environment=environment) as running:
        for step in steps:
            moment = text_appears(told.run / "metrics.jsonl", f'"step": {step},')
            while not moment():
                assert running.process.poll() is None, running.output()
                time.sleep(0.01)
            began = time.monotonic()
            if number:
                os.kill(target(running), number)
            else:
                running.kill()
        told.chapters[name] = running.wait(MINUTES)
        told.seconds[name] = time.monotonic() - began
        told.survivors[name] = [" ".join(process.cmdline()) for process in living(running)]
    told.steps[name] = max(row["step"] for row in tiny.rows(told.run))


def living(running: Running) -> list[psutil.Process]:
    """What is left. Python's resource tracker ends when it reads the end of its parent: moments later."""
    end = time.monotonic() + 5
    while True:
        left = [process for process in running.survivors() if "wandb" not in process.name()]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


@pytest.mark.parametrize("chapter", ["Ctrl-C", "SIGUSR1 to rank 1"])
def test_a_request_to_stop_saves_and_ends_with_75(story, chapter):
    finished = story.chapters[chapter]
    assert finished.code == 75, finished.output
    assert "Traceback" not in finished.output
    stopped_at = int(re.search(r"stopped: after step (\d+) of 60", finished.output)[1])
    assert stopped_at == story.steps[chapter], "the last row is that of the checkpoint"
    assert not story.survivors[chapter]


@pytest.mark.parametrize("chapter", ["Ctrl-C", "SIGUSR1 to rank 1"])
def test_a_stopped_run_shows_the_command_that_resumes_it(story, chapter):
    """`test_resume_command` runs it."""
    assert "Resume with: finetune train story/recipe.yaml --run-dir story" in story.chapters[chapter].output


def test_no_bars_of_libraries_are_in_the_logs(story):
    logs = "".join(path.read_text() for path in (story.run / "logs").glob("*.log"))
    assert "%|" not in logs and "Writing model shards" not in logs


def test_a_killed_rank_ends_all_at_once_and_is_named(story):
    finished = story.chapters[KILLED]
    assert finished.code == 1, finished.output
    assert finished.output.count("rank 1: was killed by SIGKILL") == 2
    assert "Traceback" not in finished.output
    assert "Run the same command to resume from the last checkpoint" in finished.output
    assert story.seconds[KILLED] < 20  # four on an idle machine; a collective waits for minutes
    assert not story.survivors[KILLED]


def test_nothing_temporary_is_left_unless_the_supervising_process_is_killed_too(story):
    kept = story.left.pop("SIGKILL to all")
    assert [name[:9] for name in kept] == ["finetune-"], "this test sees what there is"
    assert not any(story.left.values()), story.left


def test_it_starts_again_as_often_as_it_may_on_another_port(story):
    output = story.chapters[KILLED].output
    again = re.search(r"restarting from step (\d+) \(0 restarts left\)", output)
    assert again and int(again[1]) >= 20, output
    assert len(set(re.findall(r"--main_process_port (\d+)", output))) == 2


def test_each_start_goes_on_from_the_last_checkpoint(story):
    for before, after in (("Ctrl-C", "SIGUSR1 to rank 1"), ("SIGUSR1 to rank 1", KILLED)):
        assert f"resuming from step {story.steps[before]} of {tiny.STEPS}" in story.chapters[after].output
    for name in ("SIGKILL to all", "the end"):
        came_from = int(re.search(r"resuming from step (\d+) of", story.chapters[name].output)[1])
        assert came_from % 5 == 0, "killed runs go on from the newest periodic checkpoint"


def test_the_whole_is_the_undisturbed_run_bit_for_bit(story, undisturbed):
    assert story.chapters["the end"].code == 0, story.chapters["the end"].output
    assert tiny.comparable(story.run) == tiny.comparable(undisturbed[0])
    ours, theirs = ((run / "model" / "model.safetensors").read_bytes() for run in (story.run, undisturbed[0]))
    assert ours == theirs
    assert json.loads((story.run / "run.json").read_text())["status"] == "done"


def test_wandb_has_the_whole_although_it_saw_the_end_alone(story):
    (recorded,) = story.run.glob("wandb/offline-run-*/run-*.wandb")
    steps = [row["step"] for row in tiny.wandb_history(recorded) if "train/loss" in row]
    assert steps == list(range(1, tiny.STEPS + 1))
