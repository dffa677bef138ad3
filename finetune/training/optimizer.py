"""Which parameters decay, and the optimiser over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finetune.recipe.training import TrainingSection


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights that decay, and biases and normalisation weights that never do.

    A parameter of one dimension is a bias or the gain of a normalisation. Under ZeRO-3 the module's own tensors are
    placeholders, so the shape comes from `ds_shape`.
    """
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
            (decaying if dimensions > 1 else others).append(parameter)
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(module: nn.Module, training: TrainingSection, name: str) -> torch.optim.Optimizer:
    """torch's optimisers by name. DeepSpeed's are made in `distributed/optimizers.py`."""
    groups = parameter_groups(module, training.weight_decay)
    if not groups:
        raise ValueError("no parameter is trainable")
    common: dict[str, Any] = {"lr": training.learning_rate}
    if name in ("adamw", "adam"):
        kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
        return kind(groups, betas=training.betas, eps=training.epsilon, **common)
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=training.momentum, **common)
    raise ValueError(f"{name} is not one of torch's optimisers here")
