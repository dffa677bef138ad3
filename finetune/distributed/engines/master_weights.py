"""float32 masters of half-precision weights: an optimizer that updates the masters, and copies them back.

What DeepSpeed's stages do over shards, for a rank that holds the whole model: weights and gradients take 2 bytes per
parameter instead of 4 and no cast in each forward pass; updates smaller than half precision resolves are not lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class MasterWeights:
    """Of the half-precision weights of `optimizer`, which has no state yet. Its other weights are their own masters."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._masters: dict[nn.Parameter, nn.Parameter] = {}
        for group in optimizer.param_groups:
            group["params"] = [self._make(parameter) for parameter in group["params"]]

    def _make(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.dtype not in (torch.bfloat16, torch.float16):
            return parameter
        self._masters[parameter] = nn.Parameter(parameter.detach().float())
        return self._masters[parameter]

    def of(self, parameter: Any) -> Any:
        """What the optimizer updates for a parameter of the module, and what a checkpoint holds of it."""
        return self._masters.get(parameter, parameter)

    def trained(self, module: nn.Module) -> Iterator[nn.Parameter]:
        """The masters of all parameters."""
        return (self.of(parameter) for parameter in module.parameters())

    def take_gradients(self) -> None:
        """Move the gradients to the masters, one at a time."""
        for parameter, master in self._masters.items():
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the masters to the weights that compute."""
        if self._masters:
            torch._foreach_copy_(list(self._masters), list(self._masters.values()))
