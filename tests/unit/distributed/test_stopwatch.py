"""A Stopwatch on a GPU adds up all of its blocks, and keeps few events however long nobody reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finetune.distributed.stopwatch import KEPT_BLOCKS, Stopwatch


class Event:
    """Stands for a CUDA event: each is recorded 1 ms after the last one. done: all of them are."""

    clock, done = 0.0, True

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        Event.clock += 1.0
        self.at = Event.clock

    def query(self) -> bool:
        return Event.done

    def synchronize(self) -> None:
        """It is done."""

    def elapsed_time(self, other: Any) -> float:
        return float(other.at - self.at)


@pytest.mark.parametrize("done", [True, False])
def test_events_of_finished_blocks_are_let_go(monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "done", done)
    watch = Stopwatch(torch.device("cuda"))
    for _ in range(1_000):
        with watch.running():
            pass
    assert len(watch._events) == (KEPT_BLOCKS if done else 1_000)
    assert watch.read() == pytest.approx(1.0)
    assert watch.read() == pytest.approx(1.0)
