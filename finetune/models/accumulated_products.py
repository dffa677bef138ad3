"""Linear layers whose weight gradients are added up by the matrix product that computes them.

From the second micro-batch of a step on, autograd writes each weight's gradient, reads it again together with the sum so far,
and writes the sum: four passes over memory of the weights' size. A matrix product that accumulates reads and writes the sum in
passing, which is half of it, hidden behind arithmetic, and needs no second buffer. Numbers: the sum of half-precision gradients
is rounded once per micro-batch instead of twice. A weight that is used more than once in a micro-batch, as all of ALBERT's are,
is left to autograd, which adds up what the uses give before it touches the sum: here it would be rounded for each of them.

`convert_linears` once, then `accumulating()` around the passes of a micro-batch in which nobody waits for autograd to hand over
a gradient, as DistributedDataParallel does in the last one. Outside, and for the first micro-batch, gradients are autograd's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from finetune.models.head import embedding_modules

HALF = (torch.bfloat16, torch.float16)


@dataclass
class _MicroBatch:
    """uses: how often the forward pass used a weight, until the backward pass is at its first product: what is computed again
    in it counts no more, or at most the last checkpointed layer, whose gradients are then autograd's.
    """

    uses: Counter[Tensor] = field(default_factory=Counter)
    is_counted: bool = False


_open: list[_MicroBatch] = []  # one for each `accumulating` that is under way


@contextmanager
def accumulating() -> Iterator[None]:
    """Within, backward passes add to gradients that are there, in place."""
    _open.append(_MicroBatch())
    try:
        yield
    finally:
        _open.pop()


def convert_linears(model: nn.Module) -> int:
    """Of the plain linear layers of `model` that train; returns how many. Heads of language models stay, and what is inside of
    a layer that uses weights without calling the modules that hold them (low_rank.py).
    """
    own: set[nn.Module] = set(embedding_modules(model))
    for module in model.modules():
        if getattr(module, "calls_no_children", False):
            own.update(module.modules())
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear and "forward" not in vars(layer) and layer.weight.requires_grad and layer not in own
    ]
    for layer in layers:
        layer.__class__ = AccumulatingLinear
    return len(layers)


class AccumulatingLinear(nn.Linear):
    """nn.Linear, but for who adds up the gradients of its weight, in half precision."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        weight = self.weight
        if not _is_half(input, weight):
            return super().forward(input)
        count_use(weight)
        made: list[Any] = []
        place = _SavedForProduct.apply(input, weight, self.bias, made)
        out: Tensor = _Product.apply(place, made)
        return out


def _is_half(input: Tensor, weight: Tensor) -> bool:
    """Whether both are of the one half-precision dtype that the product is computed in, and the weight trains."""
    kind = input.device.type
    computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    is_same = input.dtype == weight.dtype == computed
    return is_same and computed in HALF and weight.requires_grad and torch.is_grad_enabled()


class _Product(Function):
    """The result. Its gradient goes to `_SavedForProduct` as it is; a layer that is checkpointed and computed again ends before
    this product, if it is its last.
    """

    @staticmethod
    def forward(ctx: Any, place: Tensor, made: list[Any]) -> Tensor:  # type: ignore[override]
        with torch.autocast(place.device.type, enabled=False):
            return nn.functional.linear(*made)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        end_counting()
        return incoming, None


class _SavedForProduct(Function):
    """A tensor of the shape of the result that takes no memory; puts input, weight and bias into `made`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, bias: Tensor | None, made: list[Any]) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.weight = weight  # itself: what is saved may come back as an alias, which has no gradient
        made.extend((x, weight, bias))
        return x.new_empty(()).expand(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        with torch.autocast(x.device.type, enabled=False):
            rows, gradient = x.reshape(-1, x.shape[-1]), incoming.reshape(-1, incoming.shape[-1])
            if ctx.needs_input_grad[0]:
                of_x = (gradient @ weight).view(x.shape)
            if ctx.needs_input_grad[1]:
                of_weight = _add_or_give(ctx.weight, gradient.t(), rows)
            if ctx.needs_input_grad[2]:
                of_bias = gradient.sum(dim=0)
        return of_x, of_weight, of_bias, None


def _add_or_give(weight: Any, left: Tensor, right: Tensor) -> Tensor | None:
    """left @ right: None if it was added to the weight's gradient, or else as it is, for autograd to add."""
    so_far = sum_so_far(weight)
    if so_far is None or so_far.dtype != left.dtype:
        return left @ right
    so_far.addmm_(left, right)
    return None


def count_use(weight: Tensor) -> None:
    """A forward pass uses the weight of a layer that adds up its gradients itself."""
    if _open and not _open[-1].is_counted:
        _open[-1].uses[weight] += 1


def end_counting() -> None:
    """The backward pass has come to the first such layer."""
    if _open:
        _open[-1].is_counted = True


def sum_so_far(weight: Any) -> Tensor | None:
    """The gradient to which the weight's layer may add; None where autograd must have what there is to add."""
    is_watched = weight._backward_hooks or weight._post_accumulate_grad_hooks
    if not _open or _open[-1].uses[weight] > 1 or is_watched:
        return None
    so_far: Tensor | None = weight.grad
    return None if so_far is None or so_far.is_sparse else so_far
