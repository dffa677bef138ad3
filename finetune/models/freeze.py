"""Weights that do not train, by name: `model.freeze` of the recipe."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from finetune.errors import UserError


def freeze_weights(model: nn.Module, patterns: Sequence[str]) -> int:
    """Take the gradient from every weight that a pattern names; how many weights (tensors) that are.

    A pattern is the name of a module or of a weight, with * for any part: "resnet.embedder", "*.layers.0.*". BatchNorm
    statistics are no weights: `model.batch_norm: frozen` keeps those.
    Raises: UserError for a pattern that names nothing, with the nearest names; or if nothing is left to train.
    """
    weights = dict(model.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in weights if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not matched:
            modules = [name for name, _ in model.named_modules() if name]
            near = difflib.get_close_matches(pattern, [*modules, *weights], n=3, cutoff=0.4)
            tops = ", ".join(name for name, _ in model.named_children())
            raise UserError(
                f"{pattern!r} names no weight of the model",
                where="model.freeze",
                remedy=f"Did you mean {', '.join(near)}?" if near else f"The model's parts are {tops}.",
            )
        frozen |= matched
    for name in frozen:
        weights[name].requires_grad_(False)
    if frozen and not any(weight.requires_grad for weight in weights.values()):
        raise UserError("nothing is left to train", where="model.freeze", remedy="Freeze less.")
    return len(frozen)
