"""Proves that a replica that fails is ended and started again alone, with ranks that are a few lines of Python: no torch."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune.distributed import watching
from finetune.distributed.failure import describe_failure, write_failure
from finetune.distributed.launch import Launch
from finetune.distributed.rank_ends import killed_rank
from finetune.distributed.replica_place import READER, ReplicaPlace, process_name, rank_number
from finetune.distributed.replicas import (
    Decision,
    FailedReplica,
    NoReplicaLeft,
    ReplicaLaunch,
    ReplicaPlan,
    describe_replica,
    run_replicas,
    visible_gpus,
)
from finetune.errors import Halted, Stopped, TrainingFailed

PRELUDE = """
import json, os, signal, sys, time, pathlib
folder = pathlib.Path({folder!r})
place = json.loads(os.environ["FINETUNE_REPLICA"])
number, attempt, rank = place["number"], place["attempt"], int(os.environ["RANK"])
def wait(name):
    while not (folder / name).exists(): time.sleep(0.01)
"""
READS = "if number < 0:\n    wait('end'); sys.exit()\n"


@pytest.fixture(autouse=True)
def little_grace(monkeypatch):
    monkeypatch.setattr(watching, "GRACE_SECONDS", 0.1)


@dataclass(frozen=True)
class Scripts(ReplicaPlan):
    """arguments: one script, of all ranks and the reader. It sees number (-1: the reader), attempt, rank, folder, wait."""

    folder: Path = Path()

    def _launch(self, processes, place, gpus):
        launch = super()._launch(processes, place, gpus)
        script = PRELUDE.format(folder=str(self.folder)) + self.arguments[0]
        command = [sys.executable, "-S", "-c", script]
        return _Scripted(**{**vars(launch), "place": place}, words=command)


@dataclass(frozen=True, kw_only=True)
class _Scripted(ReplicaLaunch):
    words: list[str]

    def command(self):
        return self.words


def run(folder: Path, script: str, decide, replicas: int = 2, size: int = 2, notify=print) -> None:
    (folder / "store").mkdir()
    run_replicas(Scripts([script], size, replicas, folder=folder), folder / "logs", folder / "store", decide, notify)


def test_a_replica_starts_again_alone(tmp_path):
    """A rank of replica 1 dies: its other rank is ended, replica 0 goes on, and its third attempt lets the reader end."""
    failed: list[FailedReplica] = []

    def decide(replica: FailedReplica) -> Decision:
        failed.append(replica)
        return Decision.RESTART

    script = READS + (
        "(folder / f'began-{number}-{attempt}-{rank}').touch()\n"
        "if number == 0: wait('end'); sys.exit()\n"
        "wait(f'began-1-{attempt}-{1 - rank}')\n"
        "if attempt == 2: (folder / 'end').touch(); sys.exit()\n"
        "if rank == attempt: os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)\n"
    )
    run(tmp_path, script, decide)
    assert [(one.number, one.attempt, list(one.dead)) for one in failed] == [(1, 0, [2]), (1, 1, [3])]
    assert [one.error.where for one in failed] == ["rank 2", "rank 3"]
    began = sorted(path.name.removeprefix("began-") for path in tmp_path.glob("began-*"))
    assert began == ["0-0-0", "0-0-1", "1-0-0", "1-0-1", "1-1-0", "1-1-1", "1-2-0", "1-2-1"]


def test_what_is_given_up_is_not_waited_for_and_the_last_one_ends_all(tmp_path):
    told: list[int] = []

    def decide(replica: FailedReplica) -> Decision:
        told.append(replica.number)
        (tmp_path / f"gone-{replica.number}").touch()
        return Decision.GIVE_UP

    script = READS + "if number == 0: wait('gone-1')\nsys.exit(f'ValueError: of replica {number}')\n"
    with pytest.raises(NoReplicaLeft, match=r"no replica is left; the last one: .*of replica 0"):
        run(tmp_path, script, decide, size=1)
    assert told == [1, 0]


def test_a_replica_that_fails_when_all_is_done_is_no_failure(tmp_path):
    script = READS + "(folder / 'end').touch() if number else None\nsys.exit(1)\n"
    run(tmp_path, script, lambda replica: Decision.NOT_NEEDED, size=1)


def test_an_error_that_a_restart_does_not_help_ends_all(tmp_path):
    error = Halted("the disk is full", where="out.jsonl")
    write_failure(tmp_path / "kept", describe_failure(error, 1, tmp_path))
    script = READS + (
        "if number == 1:\n    name = 'failure-rank-00001.json'\n"
        "    (folder / 'logs' / name).write_bytes((folder / 'kept' / name).read_bytes()); sys.exit(1)\ntime.sleep(60)\n"
    )
    with pytest.raises(Halted, match="the disk is full"):
        run(tmp_path, script, lambda replica: pytest.fail("it is not to be decided"), size=1)


def test_the_readers_end_is_everyones(tmp_path):
    script = "if number < 0: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)\n"
    with pytest.raises(TrainingFailed, match="SIGKILL") as ended:
        run(tmp_path, script, lambda replica: Decision.RESTART)
    assert ended.value.where == "the process that reads and writes"


def test_whoever_is_halted_is_named_and_so_are_the_processes_that_it_started(tmp_path, monkeypatch):
    """A rank, the reader, and a child of the reader, such as the one that reads and writes."""
    monkeypatch.setattr(watching, "HALTED_SECONDS", 0.2)
    said: list[str] = []

    def notify(line: str) -> None:
        said.append(line)
        os.kill(int(line.rpartition(" ")[2]), signal.SIGCONT)

    halt = "os.kill(os.getpid(), signal.SIGSTOP)"
    script = (
        f"if number < 0:\n    child = os.fork()\n    {halt}\n    if child: os.wait(); wait('end')\n    os._exit(0)\n"
        f"if rank == 1:\n    {halt}\n    (folder / 'end').touch()\n"
    )
    run(tmp_path, script, lambda replica: pytest.fail("none failed"), replicas=1, notify=notify)
    what = " is halted (SIGSTOP), and its part of the work waits for it; to continue it: kill -CONT "
    names = sorted(line.partition(what)[0] for line in said)
    reader = "the process that reads and writes"
    assert len(names) == 3 and names[0].startswith("process ") and names[0].endswith(f" of {reader}")
    assert names[1:] == ["rank 1", reader]


def test_a_rank_that_is_interrupted_alone_was_ended_by_a_signal(tmp_path):
    failed: list[FailedReplica] = []

    def decide(replica: FailedReplica) -> Decision:
        failed.append(replica)
        (tmp_path / "end").touch()
        return Decision.NOT_NEEDED

    run(tmp_path, READS + "sys.exit(130)", decide, replicas=1, size=1)
    assert [(one.error.where, one.error.what) for one in failed] == [("rank 0", "was killed by SIGINT")]


@pytest.mark.parametrize(
    ("verb", "remedy"),
    [("train", "from the last checkpoint"), ("predict", "what is answered stays"), ("evaluate", "again.")],
)
def test_what_to_do_after_a_kill_is_that_of_the_command(verb, remedy):
    error = killed_rank({0: -signal.SIGTERM}, Launch([verb, "x"], 1, deepspeed=False, cpu=True).again)
    assert error is not None and remedy in error.remedy and ("checkpoint" in error.remedy) == (verb == "train")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])
def test_a_signal_ends_all(tmp_path, number, error):
    def send() -> None:
        while len(list(tmp_path.glob("began-*"))) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(error):
        run(tmp_path, "(folder / f'began-{number}').touch(); time.sleep(60)", lambda replica: Decision.RESTART, size=1)
    thread.join()


def test_what_a_rank_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,6,GPU-7")
    plan = ReplicaPlan(["predict"], 2, 2, visible_gpus(4))
    launch = plan.replica(1, 3, tmp_path)
    environment = launch.environment(1, launch.meet_at(99, tmp_path, tmp_path))
    assert [environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == ["1", "2"] * 2
    assert environment["CUDA_VISIBLE_DEVICES"] == "6,GPU-7" and launch.first == 2 and not launch.cpu
    assert environment["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 4))
    place = ReplicaPlace.from_environ(environment)
    assert place == ReplicaPlace(1, 2, 2, 3, str(tmp_path)) and place.ranks == 4
    assert rank_number(environment) == 3 and process_name(3) == "rank-3"
    reader = plan.reader(tmp_path).environment(0, launch.meet_at(99, tmp_path, tmp_path))
    assert reader["CUDA_VISIBLE_DEVICES"] == "4, 5,6,GPU-7"
    assert rank_number(reader) == READER and process_name(READER) == "reader"


@pytest.mark.parametrize(("size", "name"), [(1, "rank 1"), (2, "ranks 2 and 3"), (4, "ranks 4 to 7")])
def test_replicas_have_names(size, name):
    assert describe_replica(1, size) == f"replica 1 ({name})"
