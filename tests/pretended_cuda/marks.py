"""Where a tensor lies: its storage carries a mark, which views and `.data` share; and the memory that is taken."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

GIB = 2**30
BLOCK = 512  # bytes: the allocator's unit
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_storage_of = torch._C.TensorBase.untyped_storage
_real_device = torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]


class Memory:
    """Bytes of the pretended device."""

    def __init__(self) -> None:
        self.total, self.allocated, self.peak, self.refused = (
            80 * GIB,
            0,
            0,
            0,
        )  # refused: how often there was none left

    def take(self, size: int) -> None:
        if self.allocated + size > self.total:
            self.refused += 1
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU 0 has a total capacity of "
                f"{self.total / GIB:.2f} GiB of which {(self.total - self.allocated) / 2**20:.2f} MiB is free."
            )
        self.allocated += size
        self.peak = max(self.peak, self.allocated)


MEMORY = Memory()


class Mark:
    """What a storage carries. kind: "cuda", "pinned" (main memory), or "open": made by C++ that was given no device by
    Python, such as inside an operator or a backward pass; it lies where its first partner lies, `guess` until then.
    """

    __slots__ = ("bytes", "guess", "kind")

    def __init__(self, kind: str, size: int, guess: str = "cpu") -> None:
        self.kind, self.guess, self.bytes = kind, guess, 0
        if kind == "cuda":
            self.resize(size)

    def resize(self, size: int) -> None:
        """Raises: torch.OutOfMemoryError."""
        rounded = -(-size // BLOCK) * BLOCK
        MEMORY.take(rounded - self.bytes)
        self.bytes = rounded

    def __del__(self) -> None:
        MEMORY.allocated -= self.bytes


class State:
    """initialized: something was put on the device. forked: by a parent of this process, which cannot use it any more."""

    initialized = False
    forked = False


def enter_fork() -> None:
    State.forked = State.initialized


def begin_use() -> None:
    """Raises: RuntimeError in the fork of a process that has used CUDA."""
    if State.forked:
        raise RuntimeError(
            "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the 'spawn' "
            "start method"
        )
    State.initialized = True


def mark_of(tensor: Tensor) -> Mark | None:
    try:
        return getattr(_storage_of(tensor), "_pretended", None)
    except (NotImplementedError, RuntimeError):  # sparse tensors, wrappers without a storage
        return None


def put(tensor: Any, kind: str, guess: str = "cpu") -> Any:
    """Mark the storage of a tensor that has none yet; the tensor."""
    if _real_device(tensor).type != "cpu":
        return tensor  # meta
    if kind == "cuda":
        begin_use()
    try:
        storage = _storage_of(tensor)
    except (NotImplementedError, RuntimeError):
        return tensor
    if getattr(storage, "_pretended", None) is None:
        storage._pretended = Mark(kind, storage.nbytes(), guess)
    return tensor


def settle(tensor: Tensor) -> None:
    """An open tensor lies on the device from here on."""
    mark = mark_of(tensor)
    if mark is not None and mark.kind == "open":
        mark.kind = "cuda"
        mark.resize(_storage_of(tensor).nbytes())


def is_on_cuda(tensor: Tensor) -> bool:
    mark = mark_of(tensor)
    return mark is not None and (mark.kind == "cuda" or (mark.kind == "open" and mark.guess == "cuda"))


def device_of(tensor: Tensor) -> torch.device:
    real: torch.device = _real_device(tensor)
    return CUDA if real.type == "cpu" and is_on_cuda(tensor) else real


def is_cuda_device(device: Any) -> bool:
    """device: what a user may write. Raises: RuntimeError for a GPU that is not there."""
    if device is None or isinstance(device, torch.dtype):
        return False
    if isinstance(device, int):
        device = torch.device("cuda", device)
    elif isinstance(device, str):
        device = torch.device(device)
    if device.type != "cuda":
        return False
    if device.index not in (None, 0):
        raise RuntimeError(f"CUDA error: invalid device ordinal ({device}; process {os.getpid()} pretends one GPU)")
    return True
