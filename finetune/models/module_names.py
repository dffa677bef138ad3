"""Names of a model's modules, and whether those that a recipe asks for are among them. No torch until a model is built."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.errors import UserError
from finetune.models.meta import build_on_meta
from finetune.recipe.model import ModelSection

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModuleNames:
    """Full names: of all modules, and of those that can carry an adapter."""

    modules: Sequence[str]
    carriers: Sequence[str]

    @classmethod
    def of(cls, model: nn.Module) -> ModuleNames:
        """The names of a model, on any device."""
        named = [(name, module) for name, module in model.named_modules() if name]
        return cls([name for name, _ in named], [name for name, module in named if _can_carry(module)])

    def check_targets(self, targets: Sequence[str]) -> None:
        """Raises: UserError for one of adapter.targets that no module which can carry an adapter is called."""
        _check("adapter.targets", targets, self.carriers)

    def check_saved(self, save_modules: Sequence[str]) -> None:
        """Raises: UserError for one of adapter.save_modules that no module is called."""
        _check("adapter.save_modules", save_modules, self.modules)


def names_without_weights(auto_model: str, model: ModelSection) -> ModuleNames | None:
    """The names of the model that `auto_model` (such as "AutoModelForCausalLM") makes, which is built without memory for
    weights; None where that cannot be told: with code that the model brings, or a class that needs its weights to be built.

    Raises: UserError for a source or a configuration that cannot be used.
    """
    from finetune.models.config import ODD_FILES, load_config
    from finetune.models.load import model_class
    from finetune.models.quiet import quiet_transformers

    config = load_config(model)
    if model.trust_remote_code and auto_model in (getattr(config, "auto_map", None) or {}):
        return None
    kind = model_class(auto_model, model, config)
    try:
        with quiet_transformers():
            return ModuleNames.of(build_on_meta(kind, config))
    except (*ODD_FILES, RuntimeError):
        return None


def is_named(name: str, requested: Sequence[str]) -> bool:
    """Whether the module `name` is one of `requested`, which are full names or ends of them."""
    return any(name == one or name.endswith(f".{one}") for one in requested)


def is_linear(module: nn.Module) -> bool:
    """Whether an adapter takes it for a linear layer."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _can_carry(module: nn.Module) -> bool:
    from torch import nn

    return is_linear(module) or isinstance(module, (nn.Conv2d, nn.Embedding))


def _check(key: str, requested: Sequence[str], names: Sequence[str]) -> None:
    for one in requested:
        if any(is_named(name, [one]) for name in names):
            continue
        endings = sorted({name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()})
        near = difflib.get_close_matches(one, endings, 3, cutoff=0.4)
        raise UserError(
            f"{key}: no module is called {one!r}",
            remedy=f"Did you mean {' or '.join(near)}?" if near else f"Valid names: {', '.join(endings[:20])}.",
        )
