"""What finetune/models/update_kernels.py computes, by operators of torch: its stand-in where there is no GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from finetune.distributed.engines import one_pass


def adam(
    target: Tensor,
    gradient: Tensor,
    weight: Tensor | None,
    scalars: Tensor,
    state: Any,
    group: Any,
    decoupled: bool = False,
) -> None:
    check(target, gradient, weight, scalars, state["exp_avg"], state["exp_avg_sq"])
    assert scalars.shape == (4,)
    (beta1, beta2), decay = group["betas"], group["weight_decay"]
    gradient = gradient.float() * scalars[0]
    if decoupled:
        target.mul_(1 - group["lr"] * decay)
    else:
        gradient += decay * target
    state["exp_avg"].lerp_(gradient, 1 - beta1)
    state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
    spread = state["exp_avg_sq"].sqrt() / scalars[2] + group["eps"]
    target.sub_(state["exp_avg"] * (group["lr"] / scalars[1]) / spread)
    round_to(weight, target)


def lion(target: Tensor, gradient: Tensor, weight: Tensor | None, scalars: Tensor, state: Any, group: Any) -> None:
    check(target, gradient, weight, scalars, state["exp_avg"])
    beta1, beta2 = group["betas"]
    gradient, moment = gradient.float() * scalars, state["exp_avg"]
    target.mul_(1 - group["lr"] * group["weight_decay"])
    target.sub_(group["lr"] * moment.lerp(gradient, 1 - beta1).sign())
    moment.lerp_(gradient, 1 - beta2)
    round_to(weight, target)


def sgd(target: Tensor, gradient: Tensor, weight: Tensor | None, scalars: Tensor, state: Any, group: Any) -> None:
    check(target, gradient, weight, scalars, *state.values())
    gradient = gradient.float() * scalars + group["weight_decay"] * target
    if group["momentum"]:
        gradient = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
    target.sub_(group["lr"] * gradient)
    round_to(weight, target)


RULES = SimpleNamespace(adam=adam, adamw=functools.partial(adam, decoupled=True), lion=lion, sgd=sgd)


def check(target: Tensor, gradient: Tensor, weight: Tensor | None, scalars: Tensor, *state: Tensor) -> None:
    """What the kernels rely on."""
    assert target.dtype == torch.float32 and all(values.dtype == torch.float32 for values in state)
    assert scalars.dtype == torch.float32 and scalars.is_contiguous()
    tensors = [target, gradient, *state] + ([] if weight is None else [weight])
    assert all(tensor.is_contiguous() and tensor.shape == target.shape for tensor in tensors)


def round_to(weight: Tensor | None, target: Tensor) -> None:
    if weight is not None:
        assert weight.dtype in (torch.bfloat16, torch.float16)
        weight.copy_(target)


@contextmanager
def in_one_pass(kernels: Any = RULES) -> Iterator[None]:
    """Within, engines that are opened update masters as on a GPU."""
    with (
        mock.patch.object(one_pass, "_is_on_gpu", lambda tensor: True),
        mock.patch.object(one_pass, "_load_kernels", lambda: kernels),
    ):
        yield
