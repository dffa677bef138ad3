"""torch.profiler of the pretended device: its kernels are the operators of the CPU, its NCCL's those of gloo."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_real = profile


class Event:
    """Kineto's, as it would be on a GPU's timeline."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._event, name)

    def name(self) -> str:
        return str(self._event.name()).replace("gloo:", "nccl:")

    def device_type(self) -> Any:
        device = torch.autograd.DeviceType
        return device.CUDA if self.name().startswith(("aten::", "nccl:")) else device.CPU

    def activity_type(self) -> str:
        return "kernel"


class _Results:
    def __init__(self, results: Any) -> None:
        self._results = results

    def __getattr__(self, name: str) -> Any:
        return getattr(self._results, name)

    def events(self) -> list[Event]:
        return [Event(event) for event in self._results.events()]


class Profile(_real):
    def __init__(self, *, activities: Any = None, **options: Any) -> None:
        self._of_device = activities is None or ProfilerActivity.CUDA in activities
        super().__init__(activities=[ProfilerActivity.CPU], **options)

    def stop(self) -> None:
        super().stop()
        if self._of_device and self.profiler is not None:
            self.profiler.kineto_results = _Results(self.profiler.kineto_results)  # type: ignore[assignment]


def install() -> None:
    torch.profiler.profile = Profile  # type: ignore[misc]
