"""torchao's float8 training for tests: torchao itself where it is installed, else a stand-in with the names that `finetune`
uses and the same arithmetic (scaled per tensor to e4m3, incoming gradients to e5m2, products in float32).
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

IS_REAL = importlib.util.find_spec("torchao") is not None
SCALINGS = ("tensorwise", "rowwise_with_gw_hp")


@dataclass(frozen=True)
class Float8LinearConfig:
    recipe: str = "tensorwise"
    emulate: bool = False
    pad_inner_dim: bool = False

    @staticmethod
    def from_recipe_name(recipe_name: str) -> Float8LinearConfig:
        assert recipe_name in SCALINGS
        return Float8LinearConfig(recipe_name)


def rounded(values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """What is left of values once they were in float8."""
    scale = torch.finfo(kind).max / values.detach().abs().max().double().clamp(min=1e-12).float()
    return (values.float() * scale).to(kind).float() / scale


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return (rounded(x, torch.float8_e4m3fn) @ rounded(weight, torch.float8_e4m3fn).t()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        low = rounded(grad, torch.float8_e5m2)
        rows = rounded(x, torch.float8_e4m3fn).flatten(0, -2)
        of_weight = low.flatten(0, -2).t() @ rows
        return (low @ rounded(weight, torch.float8_e4m3fn)).to(x.dtype), of_weight.to(weight.dtype)


class Float8Linear(nn.Linear):
    def __init__(self, layer: nn.Linear, config: Float8LinearConfig) -> None:
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, bias=False)
        self.weight, self.bias, self.config = layer.weight, layer.bias, config

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        assert self.config.emulate, "a GPU is needed"
        out: torch.Tensor = Product.apply(input, self.weight)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias.to(out.dtype)


def convert_to_float8_training(
    module: nn.Module, *, module_filter_fn: Any = None, config: Float8LinearConfig | None = None
) -> nn.Module:
    assert isinstance(module, nn.Linear) and config is not None
    return Float8Linear(module, config)


def install() -> None:
    """Let `import torchao.float8` find the stand-in where there is no torchao, in this process."""
    if IS_REAL or "torchao.float8" in sys.modules:
        return
    package, module = ModuleType("torchao"), ModuleType("torchao.float8")
    for part in (Float8LinearConfig, convert_to_float8_training):
        setattr(module, part.__name__, part)
    package.__path__ = []  # type: ignore[attr-defined]
    sys.modules |= {"torchao": package, "torchao.float8": module}


def remove() -> None:
    """Take the stand-in away: libraries ask for torchao, and this one is not whole."""
    for name in () if IS_REAL else ("torchao", "torchao.float8"):
        sys.modules.pop(name, None)
