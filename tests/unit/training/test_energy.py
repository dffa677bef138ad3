"""Energy of GPUs: the difference of NVML's counters, and nothing where they cannot be read. NVML itself is a stand-in."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from finetune.training.energy import EnergyMeter, gpus_of


class Counter:
    """NVML with a counter for each GPU that it knows."""

    def __init__(self, millijoules: dict[str, int], code: int = 0) -> None:
        self.millijoules, self.code = millijoules, code
        self.handles = {index + 1: uuid for index, uuid in enumerate(millijoules)}

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, found: Any) -> int:  # noqa: N802
        handle = next((number for number, name in self.handles.items() if name.encode() == uuid), 0)
        found._obj.value = handle
        return 0 if handle else 6  # NVML_ERROR_NOT_FOUND

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: ctypes.c_void_p, found: Any) -> int:  # noqa: N802
        found._obj.value = self.millijoules[self.handles[gpu.value or 0]]
        return self.code


def test_joules_of_all_gpus_since_the_beginning() -> None:
    library = Counter({"GPU-a": 5_000, "GPU-b": 7_000, "GPU-c": 1})
    meter = EnergyMeter(["GPU-a", "GPU-b"], library)
    assert meter.joules() == 0
    library.millijoules |= {"GPU-a": 6_500, "GPU-b": 7_250, "GPU-c": 10**9}
    assert meter.joules() == 1.75


def test_what_cannot_be_counted_is_none() -> None:
    assert EnergyMeter([]).joules() is None
    assert EnergyMeter(["GPU-x"], Counter({"GPU-a": 1})).joules() is None
    assert EnergyMeter(["GPU-a"], Counter({"GPU-a": 1}, code=3)).joules() is None  # NVML_ERROR_NOT_SUPPORTED
    assert EnergyMeter(["GPU-a"], object()).joules() is None
    library = Counter({"GPU-a": 1})
    meter = EnergyMeter(["GPU-a"], library)
    library.code = 15  # NVML_ERROR_GPU_IS_LOST
    assert meter.joules() is None
    assert gpus_of(torch.device("cpu"), 2) == []
