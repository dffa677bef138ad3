"""Proves how ranks are started, watched and ended, with ranks that are five lines of Python: no torch, tenths of a second."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from finetune.distributed import watching
from finetune.distributed.env import DistributedEnv, from_environ
from finetune.distributed.failure import Failure, describe_failure, write_failure
from finetune.distributed.launch import LAUNCH, ONEDNN_CODE, Launch
from finetune.distributed.watching import run_workers
from finetune.errors import EXIT_STOPPED, Stopped, TrainingFailed, UserError

ROOT = Path(__file__).resolve().parents[3]
WAITS = "time.sleep(60)"


@dataclass(frozen=True)
class Script(Launch):
    """Ranks that run a script. It sees `rank` and `folder`."""

    folder: Path = Path()

    def command(self) -> list[str]:
        prelude = f"import os, signal, subprocess, sys, time, pathlib\nfolder = pathlib.Path({str(self.folder)!r})\n"
        if self.forks:
            prelude += f"sys.path.insert(0, {str(ROOT)!r})\nfrom finetune.distributed.forking import fork_here\n"
            prelude += "fork_here(lambda: None)\n"
        return [sys.executable, "-S", "-c", f"{prelude}rank = int(os.environ['RANK'])\n{self.arguments[0]}"]


@pytest.fixture(params=["started", "forked"], autouse=True)
def forks(request, monkeypatch) -> bool:
    """Every test with ranks that are started one by one, and with ranks that are forked from one process."""
    monkeypatch.setattr(Script, "forks", request.param == "forked")
    return bool(Script.forks)


def run(folder: Path, script: str, ranks: int = 2, said: list[str] | None = None) -> list[str]:
    lines: list[str] = [] if said is None else said
    launch = Script([script], ranks, deepspeed=False, cpu=True, forks=Script.forks, folder=folder)
    run_workers(launch, folder / "logs", lines.append)
    return lines


def started(folder: Path, ranks: int = 2) -> bool:
    return len(list(folder.glob("started-*"))) == ranks


def test_each_rank_knows_its_place_and_the_command_to_type_is_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = (
        "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE LOCAL_SIZE MASTER_ADDR MASTER_PORT DS_ACCELERATOR OMP_NUM_THREADS"
    )
    (line,) = run(
        tmp_path, f"(folder / f'env-{{rank}}').write_text(' '.join(os.environ[n] for n in {names.split()!r}))", 3
    )
    assert line.startswith("starting 3 ranks, as: accelerate launch --num_processes 3 ")
    words = shlex.split(line.split("as: ")[1])
    port = words[words.index("--main_process_port") + 1]
    threads = str(max(1, len(os.sched_getaffinity(0)) // 3))
    for rank in range(3):
        told = (tmp_path / f"env-{rank}").read_text().split()
        assert told == [str(rank), "3", str(rank), "3", "3", "127.0.0.1", port, "cpu", threads]


def test_its_environment_is_that_of_a_worker(tmp_path: Path) -> None:
    launch = Launch(["train"], 4, deepspeed=True, cpu=True)
    environment = launch.environment(2, launch.meet_at(1234, tmp_path, tmp_path))
    place = from_environ(environment)
    assert isinstance(place, DistributedEnv)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (2, 4, 2, 4)
    assert (place.master_addr, place.master_port) == ("127.0.0.1", 1234)


def test_onednn_keeps_little_code_on_a_cpu_unless_told(monkeypatch) -> None:
    name, _ = ONEDNN_CODE
    monkeypatch.delenv(name, raising=False)
    on_cpu, on_gpu = (Launch(["train"], 1, deepspeed=False, cpu=cpu) for cpu in (True, False))
    assert on_cpu.surroundings()[name] == "64" and name not in on_gpu.surroundings()
    monkeypatch.setenv(name, "2048")
    assert on_cpu.surroundings()[name] == "2048"


@pytest.mark.parametrize(("deepspeed", "ranks", "word"), [(True, 1, "--use_deepspeed"), (False, 2, "--multi_gpu")])
def test_the_equivalent_command_starts_as_many(deepspeed: bool, ranks: int, word: str) -> None:
    words = shlex.split(Launch(["train", "a b.yaml"], ranks, deepspeed=deepspeed, cpu=False).equivalent(7))
    assert word in words and words[-4:] == ["-m", "finetune", "train", "a b.yaml"]
    assert words[words.index("--num_processes") + 1] == str(ranks)


def test_a_rank_that_is_killed_is_named_and_the_others_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(watching, "GRACE_SECONDS", 0.2)
    with pytest.raises(TrainingFailed, match=r"rank 1: was killed by SIGKILL; the system may have run out of memory"):
        run(tmp_path, f"os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else {WAITS}")


def test_what_a_rank_reports_goes_before_that_others_were_killed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(watching, "GRACE_SECONDS", 0.2)
    report(tmp_path / "elsewhere", UserError("the data is gone", where="data"), rank=0)
    copy = (
        "(folder / 'logs' / 'failure-rank-00000.json').write_bytes(next((folder / 'elsewhere').glob('*')).read_bytes())"
    )
    with pytest.raises(UserError, match="the data is gone"):
        run(tmp_path, f"if rank == 0:\n    {copy}; sys.exit(2)\n{WAITS}")


def report(logs: Path, error: Exception, rank: int) -> Failure:
    failure = describe_failure(error, rank, logs / "rank.log")
    write_failure(logs, failure)
    return failure


def test_a_rank_that_ends_before_our_code_runs_is_quoted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(watching, "GRACE_SECONDS", 0.2)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "launcher.log").write_text("ValueError: of an earlier start\n")
    with pytest.raises(TrainingFailed, match=r"ended with code 1: ImportError: no such library"):
        run(tmp_path, "raise ImportError('no such library')")


def test_lines_of_ranks_stay_whole_in_their_common_log(tmp_path: Path, monkeypatch) -> None:
    """Python writes a line in pieces where PYTHONUNBUFFERED is set, as in many images."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    together = "(folder / f'started-{rank}').touch()\nwhile len(list(folder.glob('started-*'))) < 2: pass\n"
    run(tmp_path, f"{together}for _ in range(3000):\n    print('a', 'b', 'c', 'd', file=sys.stderr)")
    assert set((tmp_path / "logs" / "launcher.log").read_text().splitlines()) == {"a b c d"}


@pytest.mark.parametrize("code", [0, EXIT_STOPPED])
def test_ranks_that_end_in_order_are_waited_for(tmp_path: Path, monkeypatch, code: int) -> None:
    """Rank 0 has a report to write when the others have stopped."""
    monkeypatch.setattr(watching, "GRACE_SECONDS", 0.05)
    done = "time.sleep(0.6); (folder / 'done').touch()"
    script = f"if rank == 0:\n    {done}\nsys.exit({code})"
    if code:
        with pytest.raises(TrainingFailed, match="code 75"):  # nobody asked them to, and none says why
            run(tmp_path, script)
    else:
        run(tmp_path, script)
    assert (tmp_path / "done").exists()


def test_a_signal_reaches_every_rank_once(tmp_path: Path) -> None:
    handler = "signal.signal(signal.SIGTERM, lambda *a: (folder / 'asked').open('a').write(f'{rank} ') and None)"
    wait = (
        "(folder / f'started-{rank}').touch()\nwhile not (folder / 'asked').exists(): time.sleep(0.02)\ntime.sleep(0.4)"
    )
    said: list[str] = []
    thread = threading.Thread(target=when_started, args=(tmp_path, signal.SIGUSR1))
    thread.start()
    run(tmp_path, f"{handler}\n{wait}", said=said)
    thread.join()
    assert sorted((tmp_path / "asked").read_text().split()) == ["0", "1"]
    assert said[1:] == ["SIGUSR1: saving a checkpoint, then ending (Ctrl-C: at once)"]


def when_started(folder: Path, number: int, times: int = 1) -> None:
    while not started(folder):
        time.sleep(0.02)
    for _ in range(times):
        os.kill(os.getpid(), number)
        time.sleep(0.1)


def test_a_signal_before_the_ranks_can_save_is_a_stop(tmp_path: Path) -> None:
    thread = threading.Thread(target=when_started, args=(tmp_path, signal.SIGTERM))
    thread.start()
    with pytest.raises(Stopped, match="while the processes were starting"):
        run(tmp_path, f"(folder / f'started-{{rank}}').touch(); {WAITS}")
    thread.join()


STUCK = {
    "ignores signals": f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{{started}}\n{WAITS}",
    "in a C loop": "signal.signal(signal.SIGTERM, lambda *a: None)\n{started}\nsum(range(10**12))",
    "halted again and again": (
        "signal.signal(signal.SIGTERM, lambda *a: os.kill(os.getpid(), signal.SIGSTOP))\n{started}\n"
        "while True: os.kill(os.getpid(), signal.SIGSTOP)"
    ),
    "waits in a handler": f"signal.signal(signal.SIGTERM, lambda *a: {WAITS})\n{{started}}\n{WAITS}",
}


@pytest.mark.usefixtures("sighup_heard")
@pytest.mark.parametrize("stuck", STUCK.values(), ids=STUCK)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_ends_all_ranks_whatever_they_do(
    tmp_path: Path, monkeypatch, stuck: str, number: int
) -> None:
    monkeypatch.setattr(watching, "STOP_SECONDS", 0.5)
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.0)
    touch = "(folder / f'started-{rank}').touch()"
    script = f"if rank == 0:\n    {touch}\n    time.sleep(60)\n" + stuck.format(started=touch)
    thread = threading.Thread(target=when_started, args=(tmp_path, number))
    thread.start()
    began = time.monotonic()
    with pytest.raises(TrainingFailed) as failed:
        run(tmp_path, script)
    thread.join()
    assert time.monotonic() - began < 30  # they would sleep for 60 s
    told = str(failed.value)
    assert "rank 1: did not end within 0 s of " + signal.Signals(number).name in told and "was killed" in told


def test_a_rank_that_was_halted_goes_on_and_saves(tmp_path: Path) -> None:
    save = "lambda *a: ((folder / f'saved-{rank}').touch(), os._exit(0))"
    script = (
        f"signal.signal(signal.SIGTERM, {save})\n(folder / f'started-{{rank}}').touch()\n"
        f"if rank == 1: os.kill(os.getpid(), signal.SIGSTOP)\n{WAITS}"
    )
    said: list[str] = []
    thread = threading.Thread(target=when_started, args=(tmp_path, signal.SIGTERM))
    thread.start()
    run(tmp_path, script, said=said)
    thread.join()
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert "rank 1 was halted (SIGSTOP): it goes on, so that it can save" in said


def test_a_halted_rank_is_named_once_while_all_wait_for_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(watching, "HALTED_SECONDS", 0.2)
    halt = "rank == 1 and os.kill(os.getpid(), signal.SIGSTOP)"
    script = f"(folder / f'started-{{rank}}').touch()\n{halt}\ntime.sleep(1.5)"
    said: list[str] = []

    def look() -> None:
        while not (told := [line for line in said if "kill -CONT" in line]):
            time.sleep(0.05)
        time.sleep(1)  # in which it is not said again
        os.kill(int(told[0].rpartition(" ")[2]), signal.SIGCONT)

    thread = threading.Thread(target=look)
    thread.start()
    run(tmp_path, script, said=said)
    thread.join()
    told = [line for line in said if "halted" in line]
    assert len(told) == 1 and told[0].startswith("rank 1 is halted (SIGSTOP), and all ranks wait for it"), said


def test_a_checkpoint_that_grows_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(watching, "STOP_SECONDS", 0.4)
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.0)
    save = (
        "beside = folder / 'checkpoints' / 'step-00000001.incomplete'\nbeside.mkdir(parents=True, exist_ok=True)\n"
        "def save(*a):\n    for n in range(10): (beside / 'state').open('ab').write(b'x' * 9) and time.sleep(0.15)\n"
        "    (folder / f'saved-{rank}').touch(); os._exit(0)\n"
    )
    script = f"{save}signal.signal(signal.SIGTERM, save)\n(folder / f'started-{{rank}}').touch()\n{WAITS}"
    thread = threading.Thread(target=when_started, args=(tmp_path, signal.SIGTERM))
    thread.start()
    run(tmp_path, script)
    thread.join()
    assert len(list(tmp_path.glob("saved-*"))) == 2


def test_the_end_of_the_terminal_stops_nothing_under_nohup(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        thread = threading.Thread(target=when_started, args=(tmp_path, signal.SIGHUP))
        thread.start()
        said = run(tmp_path, "(folder / f'started-{rank}').touch(); time.sleep(0.5); (folder / f'done-{rank}').touch()")
        thread.join()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(list(tmp_path.glob("done-*"))) == 2 and len(said) == 1


def test_a_second_ctrl_c_ends_them_at_once(tmp_path: Path) -> None:
    script = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(folder / f'started-{{rank}}').touch()\n{WAITS}"
    thread = threading.Thread(target=when_started, args=(tmp_path, signal.SIGINT, 2))
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, script)
    thread.join()


def test_children_of_a_rank_do_not_outlive_it(tmp_path: Path, monkeypatch) -> None:
    """A rank that dies leaves its loader workers, in sessions of their own."""
    monkeypatch.setattr(watching, "GRACE_SECONDS", 0.1)
    command = "[sys.executable, '-S', '-c', 'import time; time.sleep(60)']"
    child = f"c = subprocess.Popen({command}, start_new_session=True)"
    script = f"{child}\n(folder / f'child-{{rank}}').write_text(str(c.pid))\nos._exit(3 if rank else 0)"
    with pytest.raises(TrainingFailed, match="code 3"):
        run(tmp_path, script)
    children = [int(path.read_text()) for path in tmp_path.glob("child-*")]
    assert len(children) == 2
    marked = [one for one in psutil.process_iter() if one.pid in children and one.status() != psutil.STATUS_ZOMBIE]
    assert not marked, f"{LAUNCH} marks them all"
