"""Proves that the faults really happen: what is said to be killed dies, what is said to be full is full."""

import errno
import os
import signal
import sys
import time

import pytest

from tests.faults import file_appears, flip_bit, kill_after, run_finetune, small_disk, start_finetune, text_appears

# Stands for a launcher with two ranks, each in a session of its own; ends with the first code that is not 0.
LAUNCHER = """
import os, subprocess, sys, time
rank = "import time, pathlib, os; print('rank', os.environ['RANK'], flush=True); time.sleep(60)"
ranks = [subprocess.Popen([sys.executable, "-c", rank], env={**os.environ, "RANK": str(r)}, start_new_session=True)
         for r in range(2)]
open(sys.argv[1], "w").close()
while all(r.poll() is None for r in ranks):
    time.sleep(0.01)
print("a rank ended", [r.poll() for r in ranks], flush=True)
sys.exit(3)
"""


@pytest.fixture
def running(tmp_path):
    program = (sys.executable, "-c", LAUNCHER)
    with start_finetune([str(tmp_path / "started")], folder=tmp_path, program=program) as running:
        yield running


def test_a_rank_is_found_and_killed_when_its_moment_has_come(running, tmp_path):
    moment = file_appears(tmp_path, "star*")
    with kill_after(lambda: running.rank(1).pid, when=moment) as fired:
        finished = running.wait(20)
    assert fired.is_set() and finished.code == 3
    assert "a rank ended [None, -9]" in finished.output
    assert list(running.ranks()) == [0]  # an orphan in another session is still found
    running.kill()
    assert not running.survivors()


def test_a_signal_reaches_the_parent_alone(running, tmp_path):
    first = running.rank(0)
    running.send(signal.SIGTERM)
    assert running.wait(20).code == -signal.SIGTERM
    assert first.is_running()


def test_the_context_leaves_nothing_behind(tmp_path):
    with start_finetune([str(tmp_path / "x")], folder=tmp_path, program=(sys.executable, "-c", LAUNCHER)) as running:
        ranks = [running.rank(0), running.rank(1)]
    assert not any(rank.is_running() for rank in ranks) and not running.survivors()


def test_a_run_that_takes_too_long_fails_with_its_output(tmp_path):
    code = "import time; print('so far'); time.sleep(60)"
    start = time.monotonic()
    with pytest.raises(AssertionError, match=r"still running after 1 s(.|\n)*so far"):
        run_finetune([], 1, folder=tmp_path, program=(sys.executable, "-c", code))
    assert time.monotonic() - start < 10


def test_the_real_program_starts():
    finished = run_finetune(["--help"], 60)
    assert finished.code == 0 and "train" in finished.output


def test_a_fault_that_never_happens_fails_the_test(tmp_path):
    with pytest.raises(AssertionError, match="its moment never came"):  # noqa: SIM117
        with kill_after(os.getpid(), when=text_appears(tmp_path / "metrics.jsonl", "7")):
            pass


def test_a_small_disk_fills_up(tmp_path):
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        (disk / "fits").write_bytes(bytes(1 << 19))
        with pytest.raises(OSError) as caught:
            (disk / "does-not").write_bytes(bytes(1 << 20))
        assert caught.value.errno == errno.ENOSPC
    assert not list((tmp_path / "disk").iterdir())


def test_a_flipped_bit_changes_one_byte_and_neither_size_nor_time(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    before = path.stat()
    flip_bit(path)
    assert path.read_bytes() == bytes(50) + b"\x01" + bytes(49)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
