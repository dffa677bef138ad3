"""Proves that a process which waited becomes the rank that a fresh one would be, and that none stays behind."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.distributed import launch as launching
from finetune.distributed.launch import Launch
from finetune.distributed.waiting import WaitingRanks
from finetune.distributed.watching import run_workers

ROOT = str(Path(__file__).resolve().parents[3])
RANK = """
import json, os, sys
from finetune.distributed.waiting import WAITS, wait_here
def load(asked):
    print("while importing", asked.get("verb"), file=sys.stderr, flush=True)
    if asked.get("verb") == "broken":
        raise ImportError
waited = WAITS in os.environ
arguments = wait_here(load) if waited else sys.argv[1:]
print("as a rank", file=sys.stderr, flush=True)
told = {"arguments": arguments, "pid": os.getpid(), "waited": waited, "environment": dict(os.environ)}
with open(os.path.join(arguments[0], "rank-" + os.environ.get("RANK", "x")), "w") as file:
    json.dump(told, file)
"""


@pytest.fixture(autouse=True)
def imports_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.setattr(launching, "PROGRAM", (sys.executable, "-c", RANK))


@pytest.mark.parametrize("verb", ["train", "broken"])
def test_it_becomes_the_rank_with_its_arguments_environment_and_log(tmp_path: Path, verb: str) -> None:
    waiting = WaitingRanks()
    waiting.start(launching.PROGRAM, {**os.environ, "ONLY_BEFORE": "1"}, {"verb": verb})
    with (tmp_path / "log").open("wb") as log:
        process = waiting.become([str(tmp_path), "--x"], {**os.environ, "RANK": "3"}, log.fileno())
    assert process is not None and process.wait(30) == 0 and waiting.count == 0
    told = json.loads((tmp_path / "rank-3").read_text())
    assert told["arguments"] == [str(tmp_path), "--x"] and told["pid"] == process.pid
    assert "ONLY_BEFORE" not in told["environment"] and "FINETUNE_WAITS" not in told["environment"]
    assert (tmp_path / "log").read_text() == f"while importing {verb}\nas a rank\n"


def test_one_that_died_is_passed_over_and_those_not_needed_end(tmp_path: Path) -> None:
    waiting = WaitingRanks()
    for _ in range(3):
        waiting.start(launching.PROGRAM, os.environ, {})
    dead, taken, left = (process for process, _ in waiting._idle)
    dead.kill()
    dead.wait()
    with (tmp_path / "log").open("wb") as log:
        assert waiting.become([str(tmp_path)], os.environ, log.fileno()) is taken
    waiting.close()
    assert left.poll() == -9 and taken.wait(30) == 0
    with (tmp_path / "log").open("wb") as log:
        assert waiting.become([str(tmp_path)], os.environ, log.fileno()) is None


def test_one_ends_when_nobody_can_give_it_orders_any_more() -> None:
    waiting = WaitingRanks()
    waiting.start(launching.PROGRAM, os.environ, {})
    process, control = waiting._idle.pop()
    control.close()
    assert process.wait(30) == 0


def test_a_launch_takes_those_that_wait_and_a_later_one_starts_its_own(tmp_path: Path) -> None:
    launch = Launch([str(tmp_path)], 2, deepspeed=False, cpu=True)
    waiting = launch.start_early({})
    early = {process.pid for process, _ in waiting._idle}
    for waited in (True, False):
        run_workers(replace(launch, waiting=waiting), tmp_path / "logs", lambda line: None)
        told = [json.loads((tmp_path / f"rank-{rank}").read_text()) for rank in range(2)]
        assert [one["waited"] for one in told] == [waited, waited]
        assert ({one["pid"] for one in told} == early) == waited
        assert [one["environment"]["WORLD_SIZE"] for one in told] == ["2", "2"]


def test_what_a_launch_left_behind_is_killed_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orphan = (
        RANK
        + "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, file=open(arguments[0] + '/orphan', 'w'))"
    )
    monkeypatch.setattr(launching, "PROGRAM", (sys.executable, "-c", orphan))
    launch = Launch([str(tmp_path)], 1, deepspeed=False, cpu=True)
    run_workers(replace(launch, waiting=launch.start_early({})), tmp_path / "logs", lambda line: None)
    pid = int((tmp_path / "orphan").read_text())
    ends = time.monotonic() + 10
    while time.monotonic() < ends and _lives(pid):
        time.sleep(0.02)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
