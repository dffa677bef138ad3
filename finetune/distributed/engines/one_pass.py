"""The update of weights with float32 masters in one pass over memory, by a kernel of ours (models/update_kernels.py).

Operators of torch take five: gradients to float32, clipped, the optimizer, masters to half precision. On CUDA, for the
optimizers whose entry in the registry names a kernel; the state is the optimizer's own, as it would have made it itself.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch

from finetune.distributed.sharded_state import initialize_state, own_groups
from finetune.recipe.optimizers import spec_of

Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""(what the optimizer updates, its gradient, the half-precision weight that it is rounded to or None)."""


def one_pass_of(optimizer: torch.optim.Optimizer) -> OnePass | None:
    """None where no kernel makes this optimizer's update of these weights on this machine."""
    kernel = spec_of(optimizer).kernel
    updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    is_simple = all(parameter.dtype == torch.float32 and parameter.is_contiguous() for parameter in updated)
    if not kernel or not is_simple or not all(map(_is_on_gpu, updated)):
        return None
    kernels = _load_kernels()
    return None if kernels is None else OnePass(optimizer, getattr(kernels, kernel))


class OnePass:
    """Of one optimizer, whose `step` is not called. kernel: a function of models/update_kernels.py."""

    def __init__(self, optimizer: torch.optim.Optimizer, kernel: Any) -> None:
        self._optimizer, self._kernel, self._spec = optimizer, kernel, spec_of(optimizer)

    @torch.no_grad()
    def step(self, found: list[Found], factor: torch.Tensor) -> None:
        """Update all that is `found`, which is emptied: gradients are freed as they are used. factor: of the gradients,
        float32 []. The device is asked for nothing.
        """
        targets = [target for target, _, _ in found]
        groups = dict(own_groups(self._optimizer))  # as they are now: loading a state dict makes others
        self._make_state(targets, groups)
        scalars = self._scalars(targets, factor)
        while found:
            target, gradient, weight = found.pop()
            state = self._optimizer.state[target]
            self._kernel(target, gradient.contiguous(), weight, scalars.pop(), state, groups[target])

    def _make_state(self, targets: Sequence[torch.Tensor], groups: dict[torch.Tensor, dict[str, Any]]) -> None:
        fresh = [(target, groups[target]) for target in targets if not self._optimizer.state[target]]
        initialize_state(self._optimizer, fresh, step=0)

    def _scalars(self, targets: Sequence[torch.Tensor], factor: torch.Tensor) -> list[torch.Tensor]:
        """For each target, as the kernels take them."""
        if self._spec.step != "device":
            return [factor] * len(targets)
        steps = [self._optimizer.state[target]["step"] for target in targets]
        counts = torch.stack(steps) + 1
        torch._foreach_copy_(steps, list(counts.unbind()))
        counts = counts.double()
        beta1, beta2 = self._optimizer.param_groups[0]["betas"]  # the recipe has one pair for all
        columns = (factor.double().expand_as(counts), 1 - beta1**counts, (1 - beta2**counts).sqrt(), counts)
        return list(torch.stack(columns, dim=1).float().unbind())


def _is_on_gpu(tensor: torch.Tensor) -> bool:
    """One that computes in bfloat16."""
    return tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= (8, 0)


def _load_kernels() -> Any:
    """models/update_kernels.py; None without triton, which torch for CUDA brings, or a C compiler, which it needs."""
    if "CC" not in os.environ and not any(map(shutil.which, ("gcc", "clang", "cc"))):
        return None
    try:
        return importlib.import_module("finetune.models.update_kernels")
    except ImportError:
        return None
