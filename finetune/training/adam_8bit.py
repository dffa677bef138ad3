"""AdamW whose two moments are held in 8 bits: bitsandbytes' blockwise quantization (Dettmers et al., "8-bit Optimizers via
Block-wise Quantization", 2022), on CPUs and GPUs.

256 elements share one float32 scale, so a block must lie where it lies in the whole tensor: an engine whose ranks hold flat
pieces of parameters would give other numbers on another number of ranks. Parameters of fewer than 4,096 elements keep float32
moments.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes import optim


class AdamW8bit(optim.AdamW8bit):  # type: ignore[misc]
    """bitsandbytes' own; `add_state` makes the state of one parameter before the first step, to be filled from a checkpoint."""

    def add_state(self, owner: torch.Tensor) -> None:
        """Zero moments, codes and scales. owner: one of the optimizer's parameters, of any shape, without state so far."""
        places: dict[int, tuple[int, int]] = {
            id(parameter): (at, index)
            for at, group in enumerate(self.param_groups)
            for index, parameter in enumerate(group["params"])
        }
        at, index = places[id(owner)]
        group: dict[str, Any] = self.param_groups[at]
        self.init_state(group, owner, at, index)
