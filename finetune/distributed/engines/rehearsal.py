"""Passes that are not trained on: what `Engine.rehearse` runs to see what a micro-batch costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from finetune.distributed.batchnorm import dummy_batch
from finetune.distributed.engines.engine import Rehearsal


def rehearse_apart(module: nn.Module, batch: Any, rehearsal: Rehearsal) -> None:
    """For engines whose bare module computes without other ranks. Gradients are results that are dropped: none is
    accumulated, so no hook of a wrapper notices, and whatever ends the pass, such as a lack of memory, leaves nothing half
    done.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with unseen_by_statistics(module):
        loss = rehearsal.loss_sum(rehearsal.forward(module, batch), batch)
        torch.autograd.grad(loss, trained, allow_unused=True)


@contextmanager
def unseen_by_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm layers forget what they see within: those that ask other ranks do not count it, others are put back."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    kept = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    try:
        with dummy_batch(module):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
