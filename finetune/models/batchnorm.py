"""BatchNorm that keeps the statistics it was loaded with, whatever train() says."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any module keeps running statistics of batches."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def freeze_batchnorm(model: nn.Module) -> int:
    """Keep every BatchNorm in evaluation mode, also after model.train(); scale and shift still learn.

    With frozen statistics each image is normalised alike in every batch, so the result depends neither on the micro-batch
    nor on the number of ranks. Returns how many modules were frozen.
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
