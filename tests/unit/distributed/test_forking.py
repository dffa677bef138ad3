"""Proves what is particular to ranks that are forked from one process; test_launch.py runs all of its tests with them, too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from finetune.distributed.forking import FORKS, NAME_OF_RANK, ForkedRank, fork_ranks

ROOT = Path(__file__).resolve().parents[3]
FORKER = f"""
import os, pathlib, random, signal, sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
from finetune.distributed.forking import fork_here
folder = pathlib.Path(sys.argv[1])
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks are forked on Linux only")


def command(folder: Path, script: str) -> list[str]:
    return [sys.executable, "-c", FORKER + script, str(folder)]


def environment(**more: str) -> Mapping[str, str]:
    return {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", **more}


def fork(folder: Path, script: str, wanted=lambda: True) -> list[ForkedRank]:
    with (folder / "log").open("ab") as log:
        return fork_ranks(command(folder, script), environment(), 3, log.fileno(), wanted=wanted)


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def test_ranks_are_children_of_this_process_with_a_place_a_name_and_a_session_of_their_own(tmp_path: Path) -> None:
    before = children()
    script = (
        "loaded = []\nfork_here(lambda: loaded.append(os.getpid()))\nrank = os.environ['RANK']\n"
        "names = [os.environ['LOCAL_RANK'], os.getpid() == os.getsid(0), loaded[0] == os.getpid(), len(loaded)]\n"
        "(folder / f'{rank}.part').write_text(f'{names} {random.random()}')\n"
        "(folder / f'{rank}.part').rename(folder / rank)\n"
        "while not (folder / 'go').exists(): time.sleep(0.02)\nos._exit(int(rank))"
    )
    ranks = fork(tmp_path, script)
    assert len(ranks) == 3
    until(lambda: all((tmp_path / str(rank)).exists() for rank in range(3)))
    assert [psutil.Process(rank.pid).ppid() for rank in ranks] == [os.getpid()] * 3
    assert [psutil.Process(rank.pid).name() for rank in ranks] == [f"{NAME_OF_RANK}{rank}" for rank in range(3)]
    told = [(tmp_path / str(rank)).read_text().rsplit(" ", 1) for rank in range(3)]
    assert [place for place, _ in told] == [f"['{rank}', True, False, 1]" for rank in range(3)]
    assert len({drawn for _, drawn in told}) == 3  # random numbers of its own, as a fresh process has
    assert [rank.poll() for rank in ranks] == [None] * 3
    (tmp_path / "go").touch()
    assert [rank.wait() for rank in ranks] == [0, 1, 2]
    ranks[0].send_signal(signal.SIGKILL)  # no error, and no other process is hit
    assert not children() - before


def test_a_rank_that_is_killed_tells_the_signal(tmp_path: Path) -> None:
    ranks = fork(tmp_path, "fork_here(lambda: None)\ntime.sleep(60)")
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
    assert [rank.wait() for rank in ranks] == [-signal.SIGKILL] * 3


@pytest.mark.parametrize(
    "load",
    ["1 / 0", "sys.exit(3)", "os._exit(0)", "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"],
)
def test_what_cannot_be_forked_leaves_nothing_behind(tmp_path: Path, load: str) -> None:
    """An error while importing, an end without a word, a thread that may hold a lock: watching.py starts ranks one by one."""
    before = children()
    assert fork(tmp_path, f"fork_here(lambda: {load})\n(folder / 'rank').touch()") == []
    assert not children() - before and not (tmp_path / "rank").exists()
    assert ("ZeroDivisionError" in (tmp_path / "log").read_text()) is (load == "1 / 0")


def test_it_ends_at_once_when_the_ranks_are_not_wanted_any_more(tmp_path: Path) -> None:
    before, wanted = children(), [True]
    threading.Timer(0.2, wanted.clear).start()
    assert fork(tmp_path, "fork_here(lambda: time.sleep(60))", wanted=lambda: bool(wanted)) == []
    assert not children() - before


def test_elsewhere_nothing_is_forked(monkeypatch) -> None:
    from finetune.distributed.forking import fork_here

    monkeypatch.delenv(FORKS, raising=False)
    fork_here(lambda: pytest.fail("nothing is imported early"))


@pytest.mark.parametrize("moment", ["while it imports", "while the ranks work"])
def test_the_end_of_the_supervising_process_is_that_of_all(tmp_path: Path, moment: str) -> None:
    wait = "(folder / f'{os.getpid()}').touch(); time.sleep(60)"
    script = f"def wait(): {wait}\n" + (
        "fork_here(wait)" if moment == "while it imports" else "fork_here(lambda: None)\nwait()"
    )
    supervisor = (
        f"{FORKER}from finetune.distributed.forking import fork_ranks\n"
        f"ranks = fork_ranks({command(tmp_path, script)!r}, {dict(environment())!r}, 3, 2, "
        "wanted=lambda: True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", supervisor, str(tmp_path)], stderr=subprocess.DEVNULL)
    ids = lambda: [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]  # noqa: E731
    until(lambda: len(ids()) == (1 if moment == "while it imports" else 3))
    process.kill()
    process.wait()

    def ended(pid: int) -> bool:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody may reap it in a container
        return True

    until(lambda: all(map(ended, ids())))
