"""What the device does in a step: which kernels take its time, and how long it has none.

The first of two steps is traced with kernels alone, so that recording operators does not slow the host down; the second
with operators too, which tells where kernels come from.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

STEPS = 2  # that are profiled
TABLE_SECONDS = 20.0
ROWS = 45
NAME_LENGTH = 110


class StepProfiles:
    """Call `begin` before and `end` after each of STEPS steps; then `path` has the profiles."""

    def __init__(self, path: Path) -> None:
        self.path, self.texts, self.heading = path, list[str](), ""
        self._profile: Any = None
        self._began = 0.0

    @property
    def done(self) -> bool:
        """Whether all steps were profiled."""
        return len(self.texts) == STEPS

    def begin(self) -> None:
        """Before a step."""
        gpu = torch.cuda.is_available()
        activities = [ProfilerActivity.CUDA] if gpu else [ProfilerActivity.CPU]
        if gpu and self.texts:
            activities.append(ProfilerActivity.CPU)
        self._profile = profile(activities=activities)
        _synchronize()
        self._profile.__enter__()
        self._began = time.perf_counter()

    def end(self) -> None:
        """After a step."""
        _synchronize()
        wall = time.perf_counter() - self._began
        timer = threading.Timer(TABLE_SECONDS, self._give_up)
        timer.daemon = True
        if self.texts:
            timer.start()
        self._profile.__exit__(None, None, None)
        if not self.texts:
            self.texts.append(f"one step: {1000 * wall:.1f} ms\n{_kernels(self._profile.events(), wall)}")
        else:
            order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            table = self._profile.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=80)
            self.texts.append(f"one step with operators recorded: {1000 * wall:.1f} ms\n{table}")
            timer.cancel()
            self._write()

    def _give_up(self) -> None:
        """Tables of operators of a large step take long; the device's time is worth more."""
        self.texts.append(f"operators: their table took more than {TABLE_SECONDS:.0f} s")
        self._write()
        os._exit(0)

    def _write(self) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text("\n".join([self.heading, *self.texts]) + "\n")
        partial.replace(self.path)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _kernels(events: Any, wall: float) -> str:
    """A line per kernel name, the largest sum first, and how much of `wall` seconds the device had none."""
    seen = [event for event in events if event.device_type == DeviceType.CUDA and not _is_no_work(event)]
    spans = [(event.time_range.start, event.time_range.end) for event in seen]
    busy = covered(spans) / 1e6
    total, calls = defaultdict[str, float](float), defaultdict[str, int](int)
    for event, (start, end) in zip(seen, spans, strict=True):
        total[event.name] += (end - start) / 1e3
        calls[event.name] += 1
    whole = sum(total.values())
    lines = [
        f"{len(seen)} kernels, {whole:.1f} ms; the device had none for {max(0.0, 1 - busy / wall):.1%} of the step"
    ]
    for name in sorted(total, key=lambda name: -total[name])[:ROWS]:
        lines.append(f"{total[name]:9.2f} ms {total[name] / whole:6.1%} {calls[name]:6} x  {name[:NAME_LENGTH]}")
    return "\n".join(lines)


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    length, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, until))
        until = max(until, end)
    return length


def _is_no_work(event: Any) -> bool:
    """Ranges that somebody named, and waits, are on a device's timeline too."""
    return bool(getattr(event, "is_user_annotation", False)) or event.name.endswith((" Sync", "Wait Event"))
