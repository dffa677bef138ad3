"""Seconds that a device works on what was started between two moments: a GPU lags behind the code that feeds it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

KEPT_BLOCKS = 64  # whose events are kept without a look: `read` is usually called before there are more


class Stopwatch:
    """Adds up the seconds of every `running` block; on CUDA between two events in the current stream.

    Of many blocks, the events of those that are done are let go, so it may run for days without being read.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: deque[tuple[Any, Any]] = deque()

    @contextmanager
    def running(self) -> Iterator[None]:
        if self._on_gpu:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((first, last))
            while len(self._events) > KEPT_BLOCKS and self._events[0][1].query():
                self._add(*self._events.popleft())
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def read(self) -> float:
        """Seconds so far. On CUDA it waits until the last block is done."""
        while self._events:
            first, last = self._events.popleft()
            last.synchronize()
            self._add(first, last)
        return self._seconds

    def _add(self, first: Any, last: Any) -> None:
        self._seconds += first.elapsed_time(last) / 1000
