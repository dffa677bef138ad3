"""float32 masters of half-precision weights: an optimizer that updates the masters, and copies them back.

What DeepSpeed's stages do over shards, for a rank that holds the whole model: weights and gradients take 2 bytes per
parameter instead of 4 and no cast in each forward pass; updates smaller than half precision resolves are not lost.

On a GPU a kernel does all of it in one pass over memory (one_pass.py), where there is one for the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from finetune.distributed.engines.one_pass import Found, one_pass_of
from finetune.distributed.gradient_norm import clip_factor, clip_to_norm, total_norm
from finetune.recipe.optimizers import spec_of

PORTION = 1 << 28  # elements whose gradients are float32 at once: 1 GiB


class MasterWeights:
    """Of the half-precision weights of `optimizer`, which has no state yet. Its other weights are their own masters."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._at_once = spec_of(optimizer).step == "group"  # which counts calls, whatever parameters have gradients
        self._masters: dict[nn.Parameter, nn.Parameter] = {}
        for group in optimizer.param_groups:
            group["params"] = [self._make(parameter) for parameter in group["params"]]
        self.one_pass = one_pass_of(optimizer)

    def _make(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.dtype not in (torch.bfloat16, torch.float16):
            return parameter
        self._masters[parameter] = nn.Parameter(parameter.detach().float())
        return self._masters[parameter]

    def of(self, parameter: Any) -> Any:
        """What the optimizer updates for a parameter of the module, and what a checkpoint holds of it."""
        return self._masters.get(parameter, parameter)

    def step(self, module: nn.Module, update: Callable[[], Any], limit: float) -> torch.Tensor:
        """Clip the gradients of the module to `limit` (0: never), update the masters, clear the gradients, round the masters to
        the weights. update: the optimizer's step. The norm before clipping, as `total_norm` gives it.
        """
        found = [(p, p.grad) for p in module.parameters() if p.grad is not None]
        for parameter in module.parameters():
            parameter.grad = None
        norm = total_norm(gradient for _, gradient in found)
        if self.one_pass is not None:
            held: list[Found] = [(self.of(p), gradient, p if p in self._masters else None) for p, gradient in found]
            del found
            self.one_pass.step(held, clip_factor(limit, norm))
        else:
            self._step_in_portions(found, update, limit, norm)
            self.give_weights()
        return norm

    def _step_in_portions(
        self,
        found: list[tuple[nn.Parameter, torch.Tensor]],
        update: Callable[[], Any],
        limit: float,
        norm: torch.Tensor,
    ) -> None:
        """By operators of torch. Gradients are float32 for PORTION elements at a time, where the optimizer allows several steps
        for one: 4 bytes per parameter less than all at once. Updates are elementwise, so the numbers are the same.
        """
        found.reverse()
        while found:
            masters: list[nn.Parameter] = []
            while found and (not masters or self._fits(masters, found[-1][0])):
                parameter, gradient = found.pop()
                master = self.of(parameter)
                master.grad = gradient.float()
                masters.append(master)
            clip_to_norm(masters, limit, norm)
            update()
            for master in masters:
                master.grad = None

    def _fits(self, masters: Sequence[nn.Parameter], another: nn.Parameter) -> bool:
        """Whether gradients of these are float32 at the same time."""
        return self._at_once or sum(master.numel() for master in (*masters, another)) <= PORTION

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the masters to the weights that compute."""
        if self._masters:
            torch._foreach_copy_(list(self._masters), list(self._masters.values()))
