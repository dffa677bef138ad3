"""Tests that a pool gives what one process gives, in order, and that workers that raise, die or eat all memory are told."""

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from finetune.data.prepare import pool as pool_module
from finetune.data.prepare.pool import map_chunks
from finetune.errors import TrainingFailed, UserError

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def fork(monkeypatch, request):
    """The tests' own process may have threads; it is forked all the same, but where a test is about that."""
    if "threads" not in request.node.name:
        monkeypatch.setattr(pool_module, "_may_fork", lambda: True)


class Squares:
    """Squares of numbers; `act` is called with each of them before."""

    def __init__(self, act=None):
        self.act = act

    def run(self, chunk):
        if self.act is not None:
            for unit in range(*chunk):
                self.act(unit)
        return [unit * unit for unit in range(*chunk)]

    def describe(self, chunk):
        return f"numbers {chunk[0]} to {chunk[1] - 1}"

    def lost(self, chunk, why):
        return [why]

    def join(self, results):
        return [item for result in results for item in result]


CHUNKS = [(first, first + 5) for first in range(0, 100, 5)]
SQUARES = [number * number for number in range(100)]


def flat(job, workers=3):
    found = list(map_chunks(job, CHUNKS, workers=workers))
    assert [chunk for chunk, _ in found] == CHUNKS
    return [item for _, result in found for item in result]


def slow_at_first(unit):
    time.sleep(0.05 if unit < 5 else 0)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_chunks(workers):
    assert flat(Squares(slow_at_first), workers) == SQUARES


def test_a_process_with_threads_spawns_its_workers():
    waiting = threading.Event()
    thread = threading.Thread(target=waiting.wait)
    thread.start()
    try:
        assert not pool_module._may_fork()
        assert flat(Squares(), 2) == SQUARES
    finally:
        waiting.set()
        thread.join()


def test_a_job_that_cannot_be_sent_is_done_alone_where_threads_forbid_to_fork(monkeypatch):
    monkeypatch.setattr(pool_module, "_may_fork", lambda: False)
    assert flat(Squares(lambda unit: None), 2) == SQUARES


def refuse(unit):
    if unit == 42:
        raise UserError("no forty-two", where="numbers", remedy="Take another.")


def test_an_exception_is_raised_at_the_turn_of_its_chunk_and_nobody_is_left():
    done = []
    with pytest.raises(UserError, match="no forty-two") as error:
        for _, result in map_chunks(Squares(refuse), CHUNKS, workers=3):
            done.append(result)
    assert len(done) == 8 and error.value.remedy == "Take another."
    assert "in a worker process" in error.value.__notes__[0]
    assert not multiprocessing.active_children()


def die_at(*units, number=signal.SIGKILL):
    def act(unit):
        if unit in units:
            faulthandler.disable()
            os.kill(os.getpid(), number)

    return act


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_unit_that_ends_its_worker_is_found_and_the_others_are_computed(number):
    found = flat(Squares(die_at(42, 77, number=number)))
    assert [item for item in found if not isinstance(item, str)] == [
        square for index, square in enumerate(SQUARES) if index not in (42, 77)
    ]
    assert found[42] == found[77] and f"killed by {number.name}" in found[42] and "out of memory" in found[42]


def test_a_worker_that_dies_once_costs_nothing(tmp_path):
    def once(unit):
        if unit == 42 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert flat(Squares(once)) == SQUARES


def test_workers_that_die_again_and_again_end_the_work():
    with pytest.raises(TrainingFailed, match="keep dying") as error:
        flat(Squares(die_at(*range(40, 45))))
    assert "numbers 43" in error.value.where and "--workers 1" in error.value.remedy
    assert not multiprocessing.active_children()


class Whole:
    """A job whose chunks cannot be divided."""

    def run(self, chunk):
        if chunk == (20, 25):
            os.kill(os.getpid(), signal.SIGKILL)
        return list(range(*chunk))

    def describe(self, chunk):
        return f"bytes {chunk[0]} to {chunk[1]}"


def test_a_chunk_that_cannot_be_divided_is_named():
    with pytest.raises(TrainingFailed) as error:
        flat(Whole())
    assert error.value.where == "bytes 20 to 25"


def test_memory_is_limited():
    """A worker that asks for more gets a MemoryError; the machine does not notice."""
    code = (
        "from finetune.data.prepare.memory import limit_memory\n"
        "limit_memory(100 << 20)\n"
        "small = bytearray(50 << 20)\n"
        "try:\n    bytearray(200 << 20)\nexcept MemoryError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "refused\n"


def wait_until_idle(process):
    """Until it uses no processor for 0.3 seconds."""
    used = None
    while used != (used := process.cpu_times()[:2]) or process.status() != psutil.STATUS_SLEEPING:
        time.sleep(0.3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_workers_end_with_their_parent(number):
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell starts in the background
        "from finetune.data.prepare.pool import map_chunks\n"
        "class Sleep:\n"
        "    def run(self, chunk): os.write(1, b'at work\\n'); time.sleep(60)\n"
        "list(map_chunks(Sleep(), [(0, 1), (1, 2), (2, 3), (3, 4)], workers=2))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    for _ in range(2):
        assert parent.stdout.readline() == b"at work\n"
    process = psutil.Process(parent.pid)
    workers = process.children()
    assert len(workers) == 2
    wait_until_idle(process)  # Python drops a KeyboardInterrupt that comes while it forks
    started = time.monotonic()
    parent.send_signal(number)
    parent.wait(10)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive and time.monotonic() - started < 8
