"""What torch.cuda, torch.accelerator and their kin answer: one H100, whose memory is counted."""

from __future__ import annotations

import contextlib
import types
from typing import Any

import torch

from tests.pretended_cuda import crossings, randomness, streams
from tests.pretended_cuda.marks import MEMORY, State, begin_use, is_cuda_device

NAME = "NVIDIA H100 80GB HBM3"
CAPABILITY = (9, 0)
CUDNN = 91501


class Properties(types.SimpleNamespace):
    name, major, minor, multi_processor_count = NAME, *CAPABILITY, 132
    warp_size, is_integrated, is_multi_gpu_board = 32, 0, 0
    max_threads_per_multi_processor, regs_per_multiprocessor, L2_cache_size = 2048, 65536, 50 * 2**20
    shared_memory_per_block, shared_memory_per_block_optin = 49152, 232448
    uuid, pci_bus_id, gcnArchName = "00000000-0000-0000-0000-000000000000", 0, NAME  # noqa: N815

    @property
    def total_memory(self) -> int:
        return MEMORY.total


def _checked(device: Any = None) -> None:
    """Raises: RuntimeError for a GPU that is not there; ValueError for none."""
    if device is not None and not is_cuda_device(device):
        raise ValueError(f"Expected a cuda device, but got: {device}")


def _properties(device: Any = None) -> Properties:
    _checked(device)
    return Properties()


def _capability(device: Any = None) -> tuple[int, int]:
    _checked(device)
    return CAPABILITY


def _allocated(device: Any = None) -> int:
    _checked(device)
    return MEMORY.allocated


def _peak(device: Any = None) -> int:
    _checked(device)
    return MEMORY.peak


def _forget_peak(device: Any = None) -> None:
    _checked(device)
    MEMORY.peak = MEMORY.allocated


def _free_and_total(device: Any = None) -> tuple[int, int]:
    _checked(device)
    return MEMORY.total - MEMORY.allocated, MEMORY.total


def _statistics(device: Any = None) -> dict[str, int]:
    return {
        "allocated_bytes.all.current": MEMORY.allocated, "allocated_bytes.all.peak": MEMORY.peak,
        "reserved_bytes.all.current": MEMORY.allocated, "reserved_bytes.all.peak": MEMORY.peak,
        "active_bytes.all.current": MEMORY.allocated, "active_bytes.all.peak": MEMORY.peak,
        "num_alloc_retries": 0, "num_ooms": 0, "inactive_split_bytes.all.current": 0, "allocation.all.current": 0,
    }  # fmt: skip


def _nothing(*_: Any, **__: Any) -> None: ...


def _set_device(device: Any) -> None:
    if device is not None and not (isinstance(device, int) and device < 0):
        _checked(device)


class Device:
    """torch.cuda.device(...) as a context."""

    def __init__(self, device: Any) -> None:
        _set_device(device)
        self.idx, self.prev_idx = 0, 0

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


class Runtime:
    """torch.cuda.cudart()."""

    @staticmethod
    def cudaHostRegister(address: int, size: int, flags: int) -> int:  # noqa: N802
        begin_use()
        crossings.registered.append((address, size))
        return 0

    @staticmethod
    def cudaHostUnregister(address: int) -> int:  # noqa: N802
        streams.QUEUE.arrive()
        kept = [one for one in crossings.registered if one[0] != address]
        found = len(kept) < len(crossings.registered)
        crossings.registered[:] = kept
        return 0 if found else 713  # cudaErrorHostMemoryNotRegistered

    @staticmethod
    def cudaMemGetInfo(device: int = 0) -> tuple[int, int]:  # noqa: N802
        return _free_and_total()


def _sleep(cycles: int) -> None:
    """The host goes on."""


def _accelerator(check_available: bool = False) -> torch.device:
    return torch.device("cuda")


def _begin() -> None:
    begin_use()


def _set_rng_states(states: Any) -> None:
    for state in states:
        randomness.set_state(state)


ANSWERS: dict[str, Any] = {
    "is_available": lambda: True, "is_initialized": lambda: State.initialized, "init": _begin, "_lazy_init": _begin,
    "_is_in_bad_fork": lambda: State.forked, "_lazy_call": lambda call, **_: call(),
    "device_count": lambda: 1, "_device_count_nvml": lambda: 1, "current_device": lambda: 0, "set_device": _set_device,
    "_get_device_index": lambda device=None, *_, **__: (_set_device(device), 0)[1],
    "_exchange_device": lambda device: 0, "_maybe_exchange_device": lambda device: 0,
    "get_device_name": lambda device=None: (_checked(device), NAME)[1], "get_device_capability": _capability,
    "get_device_properties": _properties, "get_arch_list": lambda: ["sm_80", "sm_90"],
    "is_bf16_supported": lambda including_emulation=True: True, "is_tf32_supported": lambda: True,
    "can_device_access_peer": lambda one, other: False, "device": Device, "device_of": lambda tensor: Device(None),
    "memory_allocated": _allocated, "max_memory_allocated": _peak, "memory_reserved": _allocated,
    "max_memory_reserved": _peak, "memory_cached": _allocated, "max_memory_cached": _peak,
    "reset_peak_memory_stats": _forget_peak, "reset_max_memory_allocated": _forget_peak,
    "reset_accumulated_memory_stats": _nothing, "memory_stats": _statistics, "mem_get_info": _free_and_total,
    "memory_summary": lambda *_, **__: "", "empty_cache": _nothing, "ipc_collect": _nothing,
    "set_per_process_memory_fraction": _nothing,
    "synchronize": streams.wait_for_device, "Stream": streams.Stream, "Event": streams.Event,
    "stream": streams.StreamContext, "StreamContext": streams.StreamContext, "set_stream": _nothing,
    "current_stream": lambda device=None: streams.Streams.current,
    "default_stream": lambda device=None: streams.Streams.default, "is_current_stream_capturing": lambda: False,
    "cudart": lambda: Runtime, "_sleep": _sleep, "set_sync_debug_mode": _nothing, "get_sync_debug_mode": lambda: 0,
    "get_rng_state": randomness.get_state, "set_rng_state": randomness.set_state,
    "get_rng_state_all": lambda: [randomness.get_state()], "set_rng_state_all": _set_rng_states,
    "manual_seed": randomness.seed, "manual_seed_all": randomness.seed, "seed": lambda: randomness.seed(0),
    "seed_all": lambda: randomness.seed(0), "initial_seed": lambda: randomness.DEFAULT.initial_seed(),
    "default_generators": (randomness.DEFAULT,), "utilization": lambda device=None: 0,
}  # fmt: skip
ACCELERATOR: dict[str, Any] = {
    "is_available": lambda: True, "device_count": lambda: 1, "current_accelerator": _accelerator,
    "current_device_index": lambda: 0, "current_device_idx": lambda: 0, "set_device_index": _set_device,
    "set_device_idx": _set_device, "synchronize": streams.wait_for_device,
    "current_stream": lambda device=None: streams.Streams.current, "set_stream": _nothing,
    "memory_allocated": _allocated, "max_memory_allocated": _peak, "memory_reserved": _allocated,
    "max_memory_reserved": _peak, "reset_peak_memory_stats": _forget_peak, "empty_cache": _nothing,
    "memory_stats": _statistics, "get_memory_info": _free_and_total, "device_index": Device,
}  # fmt: skip


def group_by_device_and_dtype(lists: list[list[Any]], with_indices: bool = False) -> dict[Any, Any]:
    """In place of C++, which sees one device: what optimizers and the clipping of gradients ask."""
    found: dict[Any, Any] = {}
    for index, first in enumerate(lists[0]):
        groups, indices = found.setdefault((first.device, first.dtype), ([[] for _ in lists], []))
        for group, one in zip(groups, lists, strict=True):
            if one:
                group.append(one[index])
        if with_indices:
            indices.append(index)
    return found


_RealDevice = torch.device


class _AnyDevice(type):
    """torch.device(0) asks C++ for an accelerator; all else, and what is made, is the real class's."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], int) and not kwargs:
            args = ("cuda", args[0])
        return _RealDevice(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _RealDevice)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, _RealDevice)


class _DeviceClass(metaclass=_AnyDevice):
    __module__, __qualname__ = "torch", "device"


def install() -> None:
    for module in (torch.cuda, torch.cuda.memory, torch.cuda.random, torch.cuda.streams):
        for name, answer in ANSWERS.items():
            if module is torch.cuda or hasattr(module, name):
                setattr(module, name, answer)
    for name, answer in ACCELERATOR.items():
        setattr(torch.accelerator, name, answer)
    torch.Generator = randomness.Generator  # type: ignore[misc, assignment]
    torch.Stream, torch.Event = streams.Stream, streams.Event  # type: ignore[misc, assignment]
    torch._C._group_tensors_by_device_and_dtype = group_by_device_and_dtype
    torch._C._get_accelerator = _accelerator
    module_of = torch.get_device_module
    torch.get_device_module = lambda device=None: torch.cuda if device is None else module_of(device)
    torch.device = _DeviceClass  # type: ignore[misc, assignment]
    torch.version.cuda = "13.0"
    torch.backends.cuda.is_built = lambda: True
    torch.backends.cudnn.version, torch.backends.cudnn.is_available = (lambda: CUDNN), (lambda: True)
    if not hasattr(torch._C, "_cuda_getCurrentRawStream"):  # bitsandbytes takes it as it is imported
        torch._C._cuda_getCurrentRawStream = lambda device: 0
    nvtx = torch.cuda.nvtx
    for name in ("range_push", "range_pop", "range_start", "range_end", "mark"):
        setattr(nvtx, name, _nothing)
    nvtx.range = lambda *_, **__: contextlib.nullcontext()
    torch.cuda.nccl.version = lambda: (2, 28, 0)
    torch.is_autocast_available = lambda device: device in ("cpu", "cuda")  # type: ignore[assignment]
