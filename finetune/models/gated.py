"""Gated feed-forward layers, down(act(gate(x)) * up(x)), that do not keep act(gate(x)) for the backward pass.

The activation is computed again from gate(x), which is kept anyway: one pass over an activation of the layer's full width,
for the memory of another. Of a layer of a Llama that is about a seventh of all that it keeps. Values and gradients are the
same to the last bit. liger-kernel's layers do it as well, on a GPU (`models/kernels.py`).
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_FORWARD = re.compile(
    r"(?:\w+ = |return )self\.down_proj\(self\.act_fn\(self\.gate_proj\((?P<x>\w+)\)\) \* self\.up_proj\((?P=x)\)\)"
)
_ACTIVATIONS = ("SiLU", "SiLUActivation", "GELU", "GELUActivation", "GELUTanh", "PytorchGELUTanh")
"""Functions of one tensor without weights, which autocast leaves in the dtype of that tensor."""


def recompute_gates(model: nn.Module) -> int:
    """Let the gated layers of `model` compute their activation again in the backward pass; returns how many do.

    Layers whose forward pass is not exactly `down_proj(act_fn(gate_proj(x)) * up_proj(x))` stay as they are.
    """
    layers: list[Any] = [layer for layer in model.modules() if _is_gated(layer)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def is_gated_product(layer: Any) -> bool:
    """Whether `layer` is written as `down_proj(act_fn(gate_proj(x)) * up_proj(x))`, whatever computes it."""
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    if not all(isinstance(getattr(layer, part, None), nn.Module) for part in parts):
        return False
    kind: Any = type(layer)
    return type(layer.act_fn).__name__ in _ACTIVATIONS and _is_plain(kind)


def _is_gated(layer: Any) -> bool:
    return "forward" not in vars(layer) and is_gated_product(layer)


@cache
def _is_plain(kind: Any) -> bool:
    """Whether the forward pass is the product alone: one statement, and perhaps the return of its result."""
    try:
        source = inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    return (
        2 <= len(lines) <= 3
        and lines[0].startswith("def forward(self, ")
        and _FORWARD.fullmatch(lines[1]) is not None
        and (len(lines) == 2) == lines[1].startswith("return ")
        and (len(lines) == 2 or lines[2] == f"return {lines[1].partition(' = ')[0]}")
    )


def _forward(self: Any, x: Tensor) -> Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        product = _Gated.apply(gate, up, self.act_fn)
    else:
        product = self.act_fn(gate) * up
    out: Tensor = self.down_proj(product)
    return out


class _Gated(Function):
    """act(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: nn.Module) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        ctx.act = act
        product: Tensor = act(gate) * up
        return product

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, incoming: Tensor) -> Any:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        of_gate = of_up = None
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            active = ctx.act(gate)
        if ctx.needs_input_grad[1]:
            of_up = (incoming * active.detach()).to(up.dtype)
        if ctx.needs_input_grad[0]:
            (of_gate,) = torch.autograd.grad(active, gate, (incoming * up).to(active.dtype))
        return of_gate, of_up, None
