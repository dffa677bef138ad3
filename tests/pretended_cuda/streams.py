"""Streams, events, and copies to the host that arrive when somebody waits for them: before, the host reads garbage.

All streams are one queue, in the order of the host's calls: an event covers what was queued before it was recorded. Races
between streams are not seen.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from tests.pretended_cuda.marks import CUDA
from tests.pretended_cuda.waits import note_wait


class Queue:
    """Copies under way, by their number."""

    def __init__(self) -> None:
        self.number, self.pending = 0, list[tuple[int, Tensor, Tensor]]()

    def send(self, destination: Tensor, values: Tensor) -> None:
        """`values` (a copy of the source as it is now) arrive in `destination` at the next wait."""
        self.number += 1
        self.pending.append((self.number, destination, values))

    def arrive(self, number: int | None = None) -> None:
        """Copies up to this number are done; None: all."""
        while self.pending and (number is None or self.pending[0][0] <= number):
            _, destination, values = self.pending.pop(0)
            with torch.no_grad():
                destination.copy_(values)


QUEUE = Queue()


class Event:
    """torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: Any) -> None:
        self.enable_timing, self._number, self._time = enable_timing, None, 0.0

    def record(self, stream: Any = None) -> None:
        self._number, self._time = QUEUE.number, time.perf_counter()  # type: ignore[assignment]

    def wait(self, stream: Any = None) -> None:
        """Of a stream, which is not the host."""

    def query(self) -> bool:
        if self._number is not None:
            QUEUE.arrive(self._number)  # a kernel queue is empty some time
        return True

    def synchronize(self) -> None:
        note_wait("event.synchronize")
        if self._number is not None:
            QUEUE.arrive(self._number)

    def elapsed_time(self, other: Event) -> float:
        if not (self.enable_timing and other.enable_timing):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        if self._number is None or other._number is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return (other._time - self._time) * 1e3


class Stream:
    """torch.cuda.Stream, also as a context."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device, self.priority, self.cuda_stream, self.stream_id = CUDA, priority, id(self), id(self)
        self.device_index, self.device_type = 0, 1

    def synchronize(self) -> None:
        note_wait("stream.synchronize")
        QUEUE.arrive()

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None: ...

    def wait_stream(self, stream: Stream) -> None: ...

    def query(self) -> bool:
        QUEUE.arrive()
        return True

    def is_capturing(self) -> bool:
        return False

    def __enter__(self) -> Stream:
        self._before = Streams.current
        Streams.current = self
        return self

    def __exit__(self, *_: Any) -> None:
        Streams.current = self._before


class Streams:
    default = Stream()
    current = default


class StreamContext:
    """torch.cuda.stream(None or a stream)."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.__enter__()

    def __exit__(self, *_: Any) -> None:
        if self.stream is not None:
            self.stream.__exit__()


def wait_for_device(*_: Any, **__: Any) -> None:
    note_wait("torch.cuda.synchronize")
    QUEUE.arrive()
