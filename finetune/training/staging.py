"""What a rank saves, divided into parts of bounded size, and copied to memory that a GPU can write to by itself.

Parts become files, so that several threads write and hash at a time. A part's tensors lie in one buffer.

Shapes: flat tensors, [numel].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from finetune.distributed.sharded_state import Shard
from finetune.training.checkpoint_tensors import shard_name
from finetune.training.pinned_memory import PinnedMemory

PART_BYTES = 512 * 2**20
ALIGNMENT = 64  # bytes, of each tensor in its buffer

Part = dict[str, torch.Tensor]
"""Name of a shard -> its values."""


def divide(shards: Iterable[Shard], part_bytes: int = PART_BYTES) -> list[Part]:
    """Parts of at most `part_bytes` each, at least one. A larger shard is cut, unless it is some columns of a matrix."""
    parts: list[Part] = [{}]
    filled = 0
    for shard in shards:
        for piece in _cut(shard, part_bytes):
            if parts[-1] and filled + piece.values.nbytes > part_bytes:
                parts.append({})
                filled = 0
            parts[-1][shard_name(piece)] = piece.values.detach()
            filled += piece.values.nbytes
    return parts


def _cut(shard: Shard, part_bytes: int) -> Iterable[Shard]:
    count = part_bytes // shard.values.element_size()
    if shard.columns is not None or shard.values.numel() <= count:
        yield shard
        return
    for first in range(0, shard.values.numel(), count):
        yield replace(shard, start=shard.start + first, values=shard.values[first : first + count])


class Staging:
    """Copies parts to main memory, into the same buffers at each save: fresh memory costs more than copying."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned: list[PinnedMemory] = []  # on a GPU
        self._buffers: list[torch.Tensor] = []

    @property
    def is_filled(self) -> bool:
        """Whether there are buffers from the save before."""
        return bool(self._buffers)

    def copy(self, parts: list[Part]) -> list[Part]:
        """The same parts, in memory of this object's. They are valid until the next call.

        At the first call, the GPU copies a part while memory for the next one is made.
        """
        sizes = [sum(_padded(values.nbytes) for values in part.values()) for part in parts]
        if [buffer.numel() for buffer in self._buffers] != sizes:
            self.clear()  # freed before there are new ones
        is_new, copies = not self._buffers, []
        for index, part in enumerate(parts):
            if is_new:
                self._buffers.append(self._allocate(sizes[index]))
            copies.append(_fill(self._buffers[index], part))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return copies

    def clear(self) -> None:
        """Free the buffers."""
        self._buffers = []
        while self._pinned:
            self._pinned.pop().free()

    def _allocate(self, size: int) -> torch.Tensor:
        if self._device.type != "cuda" or not size:
            return torch.empty(size, dtype=torch.uint8)
        self._pinned.append(PinnedMemory(size))
        return self._pinned[-1].bytes


def _fill(buffer: torch.Tensor, part: Part) -> Part:
    copies, end = {}, 0
    for name, values in part.items():
        view = buffer[end : end + values.nbytes].view(values.dtype)
        copies[name] = view.copy_(values.view(-1), non_blocking=True)
        end += _padded(values.nbytes)
    return copies


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
