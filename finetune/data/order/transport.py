"""How a batch gets from a loader process to its rank: all of its tensors in one block of shared memory, which is opened,
pinned and freed once; through the pipe between the two where shared memory is short.

torch shares each tensor by itself, in a thread whose errors reach nobody: where shared memory is full, as in a container
with Docker's 64 MiB, the rank waits forever for a batch that was dropped.
"""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

ALIGNMENT = 64  # bytes, of each tensor in its block
LEFT_FREE = 0.5  # of all shared memory: NCCL and others on this machine need some, too
SHARED_MEMORY = Path("/dev/shm")


class Packed:
    """A batch on its way. Tensors lie in a block: in shared memory, or bytes that travel with the batch."""

    def __init__(self, header: bytes, block: torch.Tensor | np.ndarray) -> None:
        self._header, self._block = header, block

    @property
    def is_shared(self) -> bool:
        return isinstance(self._block, torch.Tensor)

    def pin_memory(self) -> _Pinned:
        """torch's DataLoader calls it, in a thread of its own."""
        return _Pinned(self._header, _as_tensor(self._block).pin_memory(), was_shared=self.is_shared)

    def unpack(self) -> Any:
        """The batch; its tensors are views of the block."""
        return _Unpickler(io.BytesIO(self._header), _as_tensor(self._block)).load()


class _Pinned(Packed):
    def __init__(self, header: bytes, block: torch.Tensor, *, was_shared: bool) -> None:
        super().__init__(header, block)
        self._was_shared = was_shared

    @property
    def is_shared(self) -> bool:
        return self._was_shared


def pack(batch: Any) -> Packed:
    """batch: whatever can be pickled; CPU tensors inside it go into the block."""
    header = io.BytesIO()
    pickler = _Pickler(header)
    pickler.dump(batch)
    block = _shared_block(pickler.size)
    packed = torch.empty(pickler.size, dtype=torch.uint8) if block is None else block
    for tensor, place in zip(pickler.tensors, pickler.places, strict=True):
        _view(packed, place).copy_(tensor)
    return Packed(header.getvalue(), packed.numpy() if block is None else packed)


def shared_memory_bytes() -> tuple[int, int]:
    """(free, all) of what processes share; a system without the folder has its own limits."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 1 << 62, 1 << 62
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _shared_block(size: int) -> torch.Tensor | None:
    """None where shared memory, or the number of files that a process may open, is too small for it."""
    free, total = shared_memory_bytes()
    if not size or free - size < LEFT_FREE * total:
        return None
    try:
        storage = torch.UntypedStorage._new_shared(size)
    except (RuntimeError, OSError):
        return None
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))


Place = tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]
"""Of a tensor in its block: offset in bytes, dtype, shape, strides."""


class _Pickler(pickle.Pickler):
    """Leaves tensors out, and gives each a place."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self.places: list[Place] = []
        self.size = 0

    def persistent_id(self, obj: Any) -> Place | None:
        if type(obj) is not torch.Tensor or obj.layout != torch.strided or obj.device.type != "cpu":
            return None
        innermost = obj.dim() == 4 and obj.is_contiguous(memory_format=torch.channels_last)
        strides = obj.stride() if innermost else torch.empty(obj.shape, device="meta").stride()
        place = (self.size, obj.dtype, tuple(obj.shape), tuple(strides))
        self.tensors.append(obj.detach())
        self.places.append(place)
        self.size += -(-obj.nbytes // ALIGNMENT) * ALIGNMENT
        return place


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, block: torch.Tensor) -> None:
        super().__init__(file)
        self._block = block

    def persistent_load(self, place: Place) -> torch.Tensor:
        return _view(self._block, place)


def _view(block: torch.Tensor, place: Place) -> torch.Tensor:
    offset, dtype, shape, strides = place
    numel = int(np.prod(shape, dtype=np.int64))
    values = block[offset : offset + numel * dtype.itemsize].view(dtype)
    return values.as_strided(shape, strides, values.storage_offset())


def _as_tensor(block: torch.Tensor | np.ndarray) -> torch.Tensor:
    return block if isinstance(block, torch.Tensor) else torch.from_numpy(block)
