"""Freezes weights by name: `model.freeze` of the recipe."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from finetune.errors import UserError


def freeze_weights(model: nn.Module, patterns: Sequence[str]) -> int:
    """Freeze all weights that match a pattern. Returns the number of frozen weights (tensors).

    A pattern is the name of a module or a weight, in which * matches anything: "resnet.embedder", "*.layers.0.*".
    Running statistics of BatchNorm are not weights; use `model.batch_norm: frozen` for these.
    Raises: UserError for a pattern that matches nothing, with the most similar names; or if all weights are frozen.
    """
    weights = dict(model.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in weights if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not matched:
            modules = [name for name, _ in model.named_modules() if name]
            near = difflib.get_close_matches(pattern, [*modules, *weights], n=3, cutoff=0.4)
            children = ", ".join(name for name, _ in model.named_children())
            raise UserError(
                f"{pattern!r} matches no weight of the model",
                where="model.freeze",
                remedy=f"Did you mean {', '.join(near)}?"
                if near
                else f"The top-level modules of the model are {children}.",
            )
        frozen |= matched
    for name in frozen:
        weights[name].requires_grad_(False)
    if frozen and not any(weight.requires_grad for weight in weights.values()):
        raise UserError("all weights are frozen", where="model.freeze", remedy="Freeze fewer weights.")
    return len(frozen)
