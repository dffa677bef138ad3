"""The kinds of inputs that models take: tokens, pixels. One file each, with its `INPUT`, found without being registered.

A kind knows how the processor that makes such inputs is loaded without running its code, and inputs to compare two models on.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from finetune.models.inputs.kind import InputKind, Known

__all__ = ["InputKind", "Known", "input_kinds", "kind_of_model", "kind_of_processor"]


@cache
def input_kinds() -> dict[str, InputKind]:
    """All kinds by the name of their processor."""
    files = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in files]
    return {module.INPUT.processor: module.INPUT for module in modules if hasattr(module, "INPUT")}


def kind_of_processor(processor: Any) -> InputKind:
    """What it makes first, by its `model_input_names`. Raises: ValueError for a processor of no kind."""
    names = getattr(processor, "model_input_names", ())
    for kind in input_kinds().values():
        if kind.main_input in names:
            return kind
    raise ValueError(f"{type(processor).__name__} is neither {' nor '.join(input_kinds())}")


def kind_of_model(model: Any) -> InputKind:
    """What a model takes first, by its `main_input_name`. Raises: ValueError for a model of no kind."""
    for kind in input_kinds().values():
        if kind.main_input == model.main_input_name:
            return kind
    raise ValueError(f"{type(model).__name__} takes {model.main_input_name}, which is of no kind in models/inputs/")
