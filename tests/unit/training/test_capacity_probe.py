"""Proves how a probe reads a GPU's memory, with a stand-in for torch's counters: two ranks share the GPU."""

from types import SimpleNamespace

import pytest
import torch

from finetune.training.capacity_probe import SHARE, PassMemory

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
