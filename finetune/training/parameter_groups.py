"""Which parameters decay, and the optimizer over them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.training import TrainingSection


def parameter_groups(module: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Weights that decay, and biases and normalization weights that never do; with layer_decay below 1, both by depth.

    A parameter of one dimension is a bias or the gain of a normalization. Under ZeRO-3 the module's own tensors are
    placeholders, so the shape comes from `ds_shape`; parameters on `meta` belong to another rank. "lr_scale" of a group
    multiplies the learning rate: layer_decay to the power of the layers above it (Clark et al., "ELECTRA", 2020, section
    3.1); embeddings lie below all layers.
    """
    depths = layer_depths([name for name, _ in module.named_parameters()]) if layer_decay != 1.0 else {}
    top = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not parameter.is_meta:
            decays = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
            groups.setdefault((depths.get(name, top), decays), []).append(parameter)
    return [
        {"params": found, "weight_decay": weight_decay if decays else 0.0, "lr_scale": layer_decay ** (top - depth)}
        for (depth, decays), found in sorted(groups.items(), key=lambda item: (-item[0][0], not item[0][1]))
    ]


_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|stages?|h)\.(\d+)\.")


def layer_depths(names: Sequence[str]) -> dict[str, int]:
    """Depth of each weight: 0 below the layers (embeddings), 1 + n in layer n, and one more above all layers (head).

    ["embed.weight", "encoder.layer.0.w", "encoder.layer.1.w", "classifier.weight"] -> 0, 1, 2, 3. Layers are found by
    name (layer, layers, block, blocks, stages, h and a number; of nested ones, the outermost).
    """
    found = {name: match for name in names if (match := _LAYER.search(name))}
    top = max((int(match[1]) + 2 for match in found.values()), default=0)
    prefixes = {name[: match.start()].split(".")[0] for name, match in found.items()}
    depths = {}
    for name in names:
        inside = name.split(".")[0] in prefixes
        below = inside and ("embed" in name or "patch" in name)
        depths[name] = int(found[name][1]) + 1 if name in found else 0 if below else top
    return depths


def make_optimizer(module: nn.Module, training: TrainingSection, name: str) -> torch.optim.Optimizer:
    """The optimizer called `name` in `recipe/optimizers.py`, over this rank's weights that are trained.

    Raises: UserError where this machine cannot run it.
    """
    spec = OPTIMIZERS[name]
    groups = parameter_groups(module, training.weight_decay, training.layer_decay)
    if not groups:
        raise ValueError("no parameter is trainable")
    if spec.device == "cuda" and not torch.cuda.is_available():
        remedy = f"Use {spec.same_update or 'adamw'} here."
        raise UserError(f"{name} needs CUDA", where="training.optimizer", remedy=remedy)
    optimizer: torch.optim.Optimizer = spec.make(groups, training)
    return optimizer
