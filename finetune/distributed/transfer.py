"""Numbers on their way from the device to the host, which is asked to wait for them only when somebody reads them."""

from __future__ import annotations

from typing import Any

import torch


class Transfer:
    """A copy of `values` to the host that is under way. `read` waits for it, the first time."""

    def __init__(self, values: torch.Tensor) -> None:
        """values: of one dimension."""
        self._event: Any = None
        self._read: list[float] | None = None
        self._host = values.detach()
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def is_read(self) -> bool:
        """Whether reading again costs nothing; a CPU's numbers never cost anything."""
        return self._read is not None or self._event is None

    def read(self) -> list[float]:
        if self._read is None:
            if self._event is not None:
                self._event.synchronize()
            self._read = self._host.tolist()
        return self._read
