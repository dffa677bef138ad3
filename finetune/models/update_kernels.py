"""Triton kernels for the update of one tensor of weights on a GPU: clipping, the optimizer's state, the weights, and the
half-precision copy of them that computes, in one pass. Of AdamW that moves 28 bytes per parameter: 2 of the gradient are read,
16 of the moments and 8 of the masters read and written, 2 of the copy written.

Each function reads what it needs of a parameter group. Imported on a GPU alone, as softmax_kernels.py is.

Shapes: all tensors of a call but `scalars` have the same number of elements, and lie alike in memory. target: float32, what the
optimizer updates. gradient: any floating-point dtype. weight: what target is rounded to, or None where target computes itself.
scalars: float32 [4], or [] where the first is enough: what gradients are multiplied by; 1 - beta1^t; sqrt(1 - beta2^t).
"""
# Operators of triton's language have no types that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc,attr-defined"

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_WIDTH, _WARPS = 2048, 8  # elements of a program, and its warps


def adam(
    target: Tensor,
    gradient: Tensor,
    weight: Tensor | None,
    scalars: Tensor,
    state: Mapping[str, Any],
    group: Any,
    *,
    decoupled: bool = False,
) -> None:
    """Weight decay is added to the gradient or, decoupled, taken off the weights."""
    count, (beta1, beta2), decay = target.numel(), group["betas"], group["weight_decay"]
    _adam[(triton.cdiv(count, _WIDTH),)](
        target, gradient, target if weight is None else weight, scalars, state["exp_avg"], state["exp_avg_sq"], count,
        float(group["lr"]), 1.0 - beta1, 1.0 - beta2, float(group["eps"]),
        float(group["lr"] * decay if decoupled else decay),
        DECOUPLED=decoupled, ROUNDS=weight is not None, WIDTH=_WIDTH, num_warps=_WARPS,
    )  # fmt: skip


adamw = functools.partial(adam, decoupled=True)


def lion(
    target: Tensor, gradient: Tensor, weight: Tensor | None, scalars: Tensor, state: Mapping[str, Any], group: Any
) -> None:
    """As training/lion.py."""
    count, (beta1, beta2) = target.numel(), group["betas"]
    _lion[(triton.cdiv(count, _WIDTH),)](
        target, gradient, target if weight is None else weight, scalars, state["exp_avg"], count,
        float(group["lr"]), 1.0 - beta1, 1.0 - beta2, float(group["lr"] * group["weight_decay"]),
        ROUNDS=weight is not None, WIDTH=_WIDTH, num_warps=_WARPS,
    )  # fmt: skip


def sgd(
    target: Tensor, gradient: Tensor, weight: Tensor | None, scalars: Tensor, state: Mapping[str, Any], group: Any
) -> None:
    """With momentum, where the group has any; weight decay is added to the gradient."""
    count, momentum = target.numel(), float(group["momentum"])
    _sgd[(triton.cdiv(count, _WIDTH),)](
        target, gradient, target if weight is None else weight, scalars, state["momentum_buffer"] if momentum else target,
        count, float(group["lr"]), momentum, float(group["weight_decay"]),
        HAS_MOMENTUM=momentum != 0, ROUNDS=weight is not None, WIDTH=_WIDTH, num_warps=_WARPS,
    )  # fmt: skip


@triton.jit
def _adam(
    target, gradient, weight, scalars, exp_avg, exp_avg_sq, count, lr, rest1, rest2, eps, decay,
    DECOUPLED: tl.constexpr, ROUNDS: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    places = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    inside = places < count
    g = tl.load(gradient + places, mask=inside, other=0.0).to(tl.float32) * tl.load(scalars)
    x = tl.load(target + places, mask=inside, other=0.0)
    m = tl.load(exp_avg + places, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + places, mask=inside, other=0.0)
    if DECOUPLED:
        x = x - x * decay
    else:
        g = g + x * decay
    m = m + (g - m) * rest1
    v = v + (g * g - v) * rest2
    spread = tl.div_rn(tl.sqrt_rn(v), tl.load(scalars + 2)) + eps
    x = x - tl.div_rn(m * (lr / tl.load(scalars + 1)), spread)
    tl.store(exp_avg + places, m, mask=inside)
    tl.store(exp_avg_sq + places, v, mask=inside)
    tl.store(target + places, x, mask=inside)
    if ROUNDS:
        tl.store(weight + places, x.to(weight.dtype.element_ty), mask=inside)


@triton.jit
def _lion(
    target, gradient, weight, scalars, exp_avg, count, lr, rest1, rest2, decay,
    ROUNDS: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    places = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    inside = places < count
    g = tl.load(gradient + places, mask=inside, other=0.0).to(tl.float32) * tl.load(scalars)
    x = tl.load(target + places, mask=inside, other=0.0)
    m = tl.load(exp_avg + places, mask=inside, other=0.0)
    between = m + (g - m) * rest1
    sign = (between > 0).to(tl.float32) - (between < 0).to(tl.float32)
    x = x - x * decay - sign * lr
    tl.store(exp_avg + places, m + (g - m) * rest2, mask=inside)
    tl.store(target + places, x, mask=inside)
    if ROUNDS:
        tl.store(weight + places, x.to(weight.dtype.element_ty), mask=inside)


@triton.jit
def _sgd(
    target, gradient, weight, scalars, buffer, count, lr, momentum, decay,
    HAS_MOMENTUM: tl.constexpr, ROUNDS: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    places = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    inside = places < count
    g = tl.load(gradient + places, mask=inside, other=0.0).to(tl.float32) * tl.load(scalars)
    x = tl.load(target + places, mask=inside, other=0.0)
    g = g + x * decay
    if HAS_MOMENTUM:
        g = tl.load(buffer + places, mask=inside, other=0.0) * momentum + g
        tl.store(buffer + places, g, mask=inside)
    x = x - g * lr
    tl.store(target + places, x, mask=inside)
    if ROUNDS:
        tl.store(weight + places, x.to(weight.dtype.element_ty), mask=inside)
