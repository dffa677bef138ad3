"""Pinned host memory, allocated quickly.

The driver's own allocation clears its pages one after the other in one thread, some GB a second, while training waits. Here
torch's threads touch the pages first, large ones where the system has them, and then they are pinned.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch

PORTABLE = 1  # cudaHostRegisterPortable: for all contexts of this process


class PinnedMemory:
    """bytes: [size], uint8. Not pinned where the system pins no more: a GPU writes there more slowly."""

    def __init__(self, size: int) -> None:
        self.bytes = _touched(size)
        self._registered = _register(self.bytes)
        if not self._registered:  # such as on systems that limit locked memory
            _forget_error()
            with suppress(RuntimeError):
                self.bytes = torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def free(self) -> None:
        """Give the memory back. Nothing may use it any more."""
        if self._registered:
            self._registered = False
            torch.cuda.cudart().cudaHostUnregister(self.bytes.data_ptr())
        self.bytes = torch.empty(0, dtype=torch.uint8)


def _register(memory: torch.Tensor) -> bool:
    try:
        return int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, PORTABLE)) == 0
    except (RuntimeError, AttributeError):  # a torch without this function
        return False


def _forget_error() -> None:
    """CUDA tells an error that a call returned once more: torch would raise it for the next kernel."""
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda")


def _touched(size: int) -> torch.Tensor:
    """Memory whose pages exist, in this process alone. Loader processes are forked while it is pinned: the system would copy
    all of it for each of them, or give a copy to this process as soon as it writes, and the GPU would write to the old pages.
    """
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in ("MADV_DONTFORK", "MADV_HUGEPAGE"):
        with suppress(OSError, AttributeError):  # systems without one of them
            area.madvise(getattr(mmap, advice))
    return torch.frombuffer(area, dtype=torch.uint8).zero_()
