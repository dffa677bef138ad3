"""Energy that the GPUs of this machine have used, as NVIDIA's management library (NVML) counts it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

LIBRARY = "libnvidia-ml.so.1"  # comes with the driver
JOULES = 1e-3  # per unit that NVML counts in


class EnergyMeter:
    """Joules since it was made, of some GPUs. Nothing is counted on a CPU, without NVML, or on GPUs before Volta.

    Processes that share a GPU with the training are part of its count.
    """

    def __init__(self, uuids: Sequence[str], library: Any = None) -> None:
        """uuids: "GPU-..." of each GPU, as NVML names it. library: NVML, loaded already."""
        self._library, self._gpus, self._began = library, list[ctypes.c_void_p](), list[int]()
        if not uuids:
            return
        try:
            self._library = library or ctypes.CDLL(LIBRARY)
            self._check(self._library.nvmlInit_v2())
            self._gpus = [self._find(uuid) for uuid in uuids]
            self._began = [self._millijoules(gpu) for gpu in self._gpus]
        except (OSError, AttributeError, _NotCountedError):  # AttributeError: an NVML without one of the functions
            self._gpus = []

    def joules(self) -> float | None:
        """Of all its GPUs together since it was made; None where they are not counted."""
        if not self._gpus:
            return None
        try:
            now = [self._millijoules(gpu) for gpu in self._gpus]
        except _NotCountedError:
            return None
        return sum(after - before for after, before in zip(now, self._began, strict=True)) * JOULES

    def _find(self, uuid: str) -> ctypes.c_void_p:
        gpu = ctypes.c_void_p()
        self._check(self._library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(gpu)))
        return gpu

    def _millijoules(self, gpu: ctypes.c_void_p) -> int:
        count = ctypes.c_ulonglong()
        self._check(self._library.nvmlDeviceGetTotalEnergyConsumption(gpu, ctypes.byref(count)))
        return count.value

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise _NotCountedError(f"NVML: error {code}")


class _NotCountedError(Exception):
    """NVML does not know the GPU, or cannot count its energy."""


def gpus_of(device: torch.device, ranks: int) -> list[str]:
    """NVML's names of the GPUs that `ranks` ranks of this machine train on; [] on a CPU."""
    if device.type != "cuda":
        return []
    count = min(ranks, torch.cuda.device_count())
    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]
