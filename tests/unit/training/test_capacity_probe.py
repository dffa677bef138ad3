"""Proves how a probe reads a GPU's memory, with a stand-in for torch's counters: two ranks share the GPU; and that the time it
may take does not include compiling, with a stand-in for the clock.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.distributed import stopwatch
from finetune.training import capacity_probe
from finetune.training.capacity_probe import SHARE, CapacityProbe, PassMemory

FREE, RESERVED, ALLOCATED, STATES = 10_000, 3_000, 1_000, 2_500


@pytest.fixture
def gpu(monkeypatch):
    """Counters in bytes; peak: of what is allocated since it was reset."""
    counters = SimpleNamespace(peak=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (FREE, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: RESERVED)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: ALLOCATED)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: counters.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: counters.__dict__.update(peak=ALLOCATED))
    return counters


def memory(states, device="cuda"):
    session = SimpleNamespace(device=torch.device(device), local_world_size=2, wait=lambda: None)
    return PassMemory(session, states)


def test_room_is_what_is_free_and_cached_less_what_comes_later(gpu):
    found = memory(STATES)
    found.watch()
    gpu.peak = ALLOCATED + 1_400
    room = SHARE * (FREE / 2 + RESERVED - ALLOCATED) - (STATES - ALLOCATED)
    assert found.filled() == pytest.approx(1_400 / room) and 0.2 < found.filled() < 0.4
    found.forget()
    assert gpu.peak == ALLOCATED


def test_states_that_do_not_fit_leave_no_room(gpu):
    found = memory(50_000)
    found.watch()
    assert found.filled() == float("inf")


def test_a_cpu_says_nothing():
    found = memory(STATES, "cpu")
    found.watch()
    assert found.filled() == 0.0


class Examples:
    """A hundred of ten tokens each."""

    costs = np.full(100, 10)

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return {"id": index}


class Clockwork:
    """An engine whose passes take `seconds` of its clock whatever their size, and the first one `compiling` more."""

    rehearses_together, model = False, torch.nn.Module()

    def __init__(self, seconds, compiling):
        self.seconds, self.now, self.passes = seconds, compiling, 0
        self.session = SimpleNamespace(device=torch.device("cpu"), replicas=1, maximum=lambda *values: list(values))
        self.session.wait = lambda: None
        self.time = SimpleNamespace(perf_counter=lambda: self.now if self.passes else 0.0)

    def rehearse(self, batch, rehearsal):
        self.passes += 1
        self.now += self.seconds


@pytest.mark.parametrize(("seconds", "sizes"), [(0.1, [10, 20, 40, 80, 160]), (1.0, [10, 20])])
def test_compiling_is_not_part_of_the_time_that_a_probe_may_take(monkeypatch, seconds, sizes):
    engine = Clockwork(seconds, compiling=1_000.0)
    monkeypatch.setattr(capacity_probe, "time", engine.time)
    monkeypatch.setattr(stopwatch, "time", engine.time)
    batch = SimpleNamespace(to=lambda device: None)
    task = SimpleNamespace(collate=lambda artifacts, examples: batch, forward=None)
    probe = CapacityProbe(task, None, engine, Examples(), seed=1, global_batch=100)
    choice = probe.choose(first=10, limit=300)
    assert [one.capacity for one in choice.measured] == sizes
    assert engine.passes == 3 * len(sizes)
