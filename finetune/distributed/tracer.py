"""What a rank's device did in one step: compute, communicate without overlap, or idle.

torch's profiler sees every kernel of a GPU, every operator of a CPU, and every collective (NCCL's kernels, gloo's
ranges). A collective lasts from when this rank joins it until all have: waiting for a slower peer is in it. What hides
behind computing costs nothing, so only the rest counts: the collectives' time outside of all computing.

Kineto's raw events are not a public API: this module alone reads them, and what they lack, or whatever else fails while
tracing, ends the measuring and nothing else.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

NO_WORK = ("gpu_user_annotation", "user_annotation", "cuda_sync", "overhead")  # what a GPU's timeline holds besides
EVENT_SECONDS = 2e-6  # what recording one event adds to the step, about


@dataclass(frozen=True)
class Trace:
    """Shares of one step on this rank, between 0 and 1; what is left over, a GPU waits for its host.

    seconds: that tracing took, beside the step and in it.
    """

    computing: float
    communicating: float
    seconds: float


class Tracer:
    """`start` before a step, `stop` after it. Each rank traces for itself; there is no communication.

    Neither raises. failure: why this rank measures nothing any more; "" while it can.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._profile: Any = None
        self._began = self._cost = 0.0
        self.failure = ""

    @property
    def running(self) -> bool:
        return self._profile is not None

    def start(self) -> None:
        """What is under way on the device is finished first. Does nothing once tracing has failed."""
        if self.failure:
            return
        try:
            self._start()
        except Exception as error:
            self._give_up(error)

    def stop(self) -> Trace | None:
        """What happened since `start`; None where the profiler saw nothing (no permission for a GPU's counters) or
        tracing failed.
        """
        try:
            return self._stop()
        except Exception as error:
            self._give_up(error)
            return None

    def _start(self) -> None:
        began = time.perf_counter()
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write a line to stderr for each trace
        gpu = self.device.type == "cuda"
        self._profile = profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU])
        self._finish_kernels()
        self._profile.start()
        self._began = time.perf_counter()
        self._cost = self._began - began

    def _stop(self) -> Trace | None:
        self._finish_kernels()
        ended = time.perf_counter()
        done, self._profile = self._profile, None
        done.stop()
        # Events as Kineto has them: making torch's own objects of them takes six times as long.
        events = done.profiler.kineto_results.events()
        computing, communicating = _on_gpu(events) if self.device.type == "cuda" else _on_cpu(events)
        if not len(computing):
            return None
        length = max(ended - self._began, 1e-9)
        busy, together = covered(computing), covered(np.concatenate([computing, communicating]))
        in_the_open = min((together - busy) / 1e9 / length, 1.0)
        share = min(busy / 1e9 / length, 1.0) if self.device.type == "cuda" else 1.0 - in_the_open
        cost = self._cost + time.perf_counter() - ended + EVENT_SECONDS * len(events)
        return Trace(share, in_the_open, cost)

    def _give_up(self, error: Exception) -> None:
        """A profiler that is left running would slow down every step to come."""
        self.failure = f"{type(error).__name__}: {error}"
        left, self._profile = self._profile, None
        if left is not None:
            with suppress(Exception):
                left.stop()

    def _finish_kernels(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def covered(spans: np.ndarray) -> float:
    """Length of the union of spans [n, 2] (start, end): [[0, 4], [2, 5], [7, 8]] -> 6."""
    if not len(spans):
        return 0.0
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reached = np.maximum.accumulate(spans[:, 1])
    before = np.concatenate([spans[:1, 0], reached[:-1]])
    return float(np.maximum(reached - np.maximum(spans[:, 0], before), 0).sum())


def _on_gpu(events: Any) -> tuple[np.ndarray, np.ndarray]:
    """Spans, in ns, of kernels and copies, and of NCCL's kernels."""
    kernels: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for event in events:
        if event.device_type() == torch.autograd.DeviceType.CUDA and _is_work(event):
            start = event.start_ns()
            kernels["nccl" in event.name()].append((start, start + event.duration_ns()))
    return _spans(kernels[0]), _spans(kernels[1])


def _is_work(event: Any) -> bool:
    """Whether an event on a GPU's timeline is a kernel or a copy. torch 2.11 tells annotations only; waits, by name."""
    if hasattr(event, "activity_type"):
        return event.activity_type() not in NO_WORK
    return not event.is_user_annotation() and not event.name().endswith(" Sync")


def _on_cpu(events: Any) -> tuple[np.ndarray, np.ndarray]:
    """Spans, in ns, of the operators of the thread that trains, and of gloo's collectives."""
    operators: dict[int, list[tuple[int, int]]] = {}
    collectives: list[tuple[int, int]] = []
    for event in events:
        name = event.name()
        if name.startswith("aten::"):
            start = event.start_ns()
            operators.setdefault(event.start_thread_id(), []).append((start, start + event.duration_ns()))
        elif name.startswith("gloo:"):
            start = event.start_ns()
            collectives.append((start, start + event.duration_ns()))
    trains = max(operators.values(), key=lambda spans: covered(_spans(spans)), default=[])
    return _spans(trains), _spans(collectives)


def _spans(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
