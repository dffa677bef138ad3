"""BatchNorm with frozen statistics, whatever train() says, and with correct gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any module keeps running statistics of batches."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def freeze_batchnorm(model: nn.Module) -> int:
    """Keep every BatchNorm in evaluation mode, also after model.train(); scale and shift still learn.

    With frozen statistics each image is normalized the same way in every batch, so the result depends neither on the
    micro-batch nor on the number of ranks. Returns how many modules were frozen.
    """
    frozen = 0
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train(False)
            module.train = _stay_in_eval.__get__(module)  # type: ignore[method-assign]
            frozen += 1
    return frozen


def _stay_in_eval(self: nn.Module, mode: bool = True) -> nn.Module:
    self.training = False
    return self


def fix_batchnorm_gradients(model: nn.Module) -> int:
    """Give every BatchNorm its gradient in the memory format of its input, where a batch holds one image.

    torch 2.13's CPU kernels give a wrong gradient there, silently, if one is channels-first and the other
    channels-last (as behind a transformer's permute), in training and with frozen statistics alike. Returns how many
    modules were changed.
    """
    changed = 0
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_hook(_watch_gradient)
            changed += 1
    return changed


def _watch_gradient(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    if output.shape[0] != 1 or not output.requires_grad or output.device.type != "cpu":
        return
    strides = inputs[0].stride()

    def match(gradient: torch.Tensor) -> Any:
        if gradient.stride() == strides:
            return gradient
        return torch.empty_strided(gradient.shape, strides, dtype=gradient.dtype).copy_(gradient)

    output.register_hook(match)
