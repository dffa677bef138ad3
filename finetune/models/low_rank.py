"""LoRA that adds its product onto the output of the layer it adapts, in place, forward and backward.

peft computes `result + B(A(x)) * scaling` as three operators, each of which reads and writes an activation of the layer's
full width, and autograd adds up two gradients of the input in a fourth. Here the large product accumulates onto the small
one: it is bound by arithmetic, and reads what is there in passing, while a small product onto a large result is bound by
reading and writing all of it. The numbers are the same but for rounding: in half precision the sum is rounded once, not
three times.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.autograd.function import once_differentiable

from finetune.models.accumulated_products import count_use, end_counting, sum_so_far
from finetune.models.kept_casts import cast


class InPlaceLinear(Linear):
    """peft's LoRA of a linear layer. Wherever it would compute more than `base(x) + B(A(x)) * scaling` of plain linear
    layers (DoRA, dropout, several adapters, quantized or sliced weights, modules with hooks), peft's own forward runs.

    calls_no_children: its weights are used without calling the modules that hold them. An engine that gathers weights with
    hooks on those modules (ZeRO-3) does it for the layer instead, and sets ignores_hooks.
    """

    calls_no_children = True
    ignores_hooks = False

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        name = None if args or kwargs else self._plain_adapter()
        if name is None:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        down: Any = self.lora_A[name]
        up: Any = self.lora_B[name]
        dtype = _product_dtype(x, base.weight, down.weight, up.weight)
        if dtype is None:
            return super().forward(x)
        return _added_product(x.to(dtype), base.weight, base.bias, down.weight, up.weight, self.scaling[name])

    def _plain_adapter(self) -> str | None:
        """The one adapter that can be added in place; None where peft's forward must run."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1:
            return None
        (name,) = active
        dropout = self.lora_dropout[name]
        is_dropped = not isinstance(dropout, nn.Identity) and dropout.training
        if is_dropped or name in self.lora_variant or not self.cast_input_dtype_enabled:
            return None
        base, down, up = self.base_layer, self.lora_A[name], self.lora_B[name]
        if any(type(layer) is not nn.Linear or self._is_watched(layer) for layer in (base, down, up)):
            return None
        if down.bias is not None or up.bias is not None:
            return None
        is_frozen = not any(weight.requires_grad for weight in base.parameters())
        return name if is_frozen else None

    def _is_watched(self, layer: nn.Module) -> bool:
        """Whether something wants to see the layer's calls, such as what casts its input or sums up over ranks."""
        hooks = layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks
        return not self.ignores_hooks and any(hooks)


def add_in_place(model: nn.Module) -> int:
    """Let LoRA layers of `model` add in place; returns how many. Layers of other kinds stay as peft made them."""
    layers = [layer for layer in model.modules() if type(layer) is Linear]
    for layer in layers:
        layer.__class__ = InPlaceLinear
    return len(layers)


def _product_dtype(x: torch.Tensor, *weights: torch.Tensor) -> torch.dtype | None:
    """What the products are computed in: as autocast says, or what x and all weights are in; None where they differ."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype if all(weight.dtype == x.dtype for weight in weights) else None


def _added_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """x [..., in] -> x W^T + bias + (scaling * x A^T) B^T, with W and bias frozen.

    In two steps, of which the first saves all that the backward pass needs: where a checkpointed layer is computed again, it
    ends there, and the last product of the layer is not computed twice. In one where torch.compile traces it, which cannot
    follow `made` out of a function, and decides itself what is computed again.
    """
    if torch.compiler.is_compiling():
        whole: torch.Tensor = _AddedProduct.apply(x, weight, bias, down, up, scaling)  # type: ignore[no-untyped-call]
        return whole
    for small in (down, up):
        count_use(small)
    made: list[Any] = []
    place = _SavedForProduct.apply(x, weight, bias, down, up, scaling, made)  # type: ignore[no-untyped-call]
    out: torch.Tensor = _Product.apply(place, made)  # type: ignore[no-untyped-call]
    return out


class _Product(torch.autograd.Function):
    """The result itself. Its gradient goes to `_SavedForProduct` as it is."""

    @staticmethod
    def forward(ctx: Any, place: torch.Tensor, made: list[Any]) -> torch.Tensor:
        return _multiply(*made).view(place.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        end_counting()
        return grad, None


class _SavedForProduct(torch.autograd.Function):
    """A tensor of the shape of the result that takes no memory; puts what `_multiply` takes into `made`."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, bias: Any, down: Any, up: Any, scaling: float, made: list[Any]
    ) -> torch.Tensor:
        rows, hidden = _save(ctx, x, weight, down, up, scaling)
        made.extend((rows, weight, bias, hidden, up))
        place: torch.Tensor = x.new_empty(()).expand(*x.shape[:-1], len(weight))
        return place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return *_gradients(ctx, grad), None


class _AddedProduct(torch.autograd.Function):
    """Both as one."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, down: Any, up: Any, scaling: float) -> torch.Tensor:
        rows, hidden = _save(ctx, x, weight, down, up, scaling)
        return _multiply(rows, weight, bias, hidden, up).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return _gradients(ctx, grad)


def _save(ctx: Any, x: Any, weight: Any, down: Any, up: Any, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """All that `_gradients` needs; returns x as rows [N, in], and scaling * rows A^T [N, rank].

    Weights are saved as they are and cast again for the backward pass: what ZeRO-3 gathers must stay the parameter itself,
    and casts of frozen weights would take the memory of another model. Casts of the small ones are kept for as long as the
    engine says (kept_casts.py).
    """
    ctx.own = None if torch.compiler.is_compiling() else (down, up)  # what is saved may come back as aliases
    with torch.autocast(x.device.type, enabled=False):
        rows = x.reshape(-1, x.shape[-1])
        hidden = _scaled_product(rows, cast(down, x.dtype).t(), scaling)
    ctx.save_for_backward(rows, weight, down, up, hidden)
    ctx.scaling, ctx.shape = scaling, x.shape
    return rows, hidden


def _multiply(rows: Any, weight: Any, bias: Any, hidden: Any, up: Any) -> torch.Tensor:
    """rows W^T + bias + hidden B^T, [N, out]."""
    dtype = rows.dtype
    with torch.autocast(rows.device.type, enabled=False):
        if bias is None:
            out = hidden @ cast(up, dtype).t()
        else:
            out = torch.addmm(bias.to(dtype), hidden, cast(up, dtype).t())
        return out.addmm_(rows, weight.to(dtype).t())


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Of x, weight, bias, down, up and scaling."""
    rows, weight, down, up, hidden = ctx.saved_tensors
    down, up = ctx.own or (down, up)
    dtype, of_x, of_down, of_up = rows.dtype, None, None, None
    with torch.autocast(grad.device.type, enabled=False):
        grad = grad.reshape(-1, grad.shape[-1])
        inner = _scaled_product(grad, cast(up, dtype), ctx.scaling)
        if ctx.needs_input_grad[0]:
            of_x = (inner @ cast(down, dtype)).addmm_(grad, weight.to(dtype)).view(ctx.shape)
        if ctx.needs_input_grad[3]:
            of_down = _add_or_give(down, inner.t() @ rows)
        if ctx.needs_input_grad[4]:
            of_up = _add_or_give(up, grad.t() @ hidden)
    return of_x, None, None, of_down, of_up, None


def _add_or_give(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor | None:
    """None if the gradient was added to the sum so far of a wider weight, in the pass that casts it: the same to the last bit.
    Or else it is cast, for autograd to add.
    """
    if torch.compiler.is_compiling() or gradient.dtype == weight.dtype:
        return gradient.to(weight.dtype)
    so_far = sum_so_far(weight)
    if so_far is None or so_far.dtype != weight.dtype:
        return gradient.to(weight.dtype)
    so_far.add_(gradient)
    return None


def _scaled_product(left: torch.Tensor, right: torch.Tensor, scaling: float) -> torch.Tensor:
    """scaling * left @ right, without a pass of its own for the factor."""
    return left.new_empty(len(left), right.shape[1]).addmm_(left, right, beta=0, alpha=scaling)
