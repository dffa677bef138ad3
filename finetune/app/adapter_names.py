"""Checks the modules that adapter.targets and adapter.save_modules name before a run folder exists or a rank builds a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from finetune.app.apart import run_apart
from finetune.app.preparation.identities import models_identity
from finetune.data.prepare.cache import digest, publish
from finetune.data.prepare.file_digest import package_versions, source_digest
from finetune.models.adapter_source import adapter_of
from finetune.models.module_names import ModuleNames, names_without_weights
from finetune.recipe.model import AdapterSection, ModelSection
from finetune.recipe.recipe import Recipe
from finetune.tasks import CARDS
from finetune.terminal import phase, print_line

LookUp = Callable[[str, ModelSection], ModuleNames | None]
KIND = "module_names"
FILE = "names.json"


def names_from_child(auto_class: str, model: ModelSection) -> ModuleNames | None:
    """As names_without_weights, from a child of this process, once per model: the names are kept in the cache."""

    def write(folder: Path) -> None:
        with phase("looking up the modules of the model"):
            found = run_apart("finetune.app.adapter_names:find_names", auto_class, model, doing="builds the model")
        (folder / FILE).write_text(json.dumps(found), "utf-8")

    about = [model.config, model.trust_remote_code, auto_class, models_identity(model)]
    key = digest(KIND, 1, package_versions(), source_digest("models", "recipe"), *about)
    stored = json.loads((publish(KIND, key, write, about=model.source, notify=print_line) / FILE).read_text("utf-8"))
    return None if stored is None else ModuleNames(**stored)


def find_names(auto_class: str, model: ModelSection) -> dict[str, list[str]] | None:
    """In a child: the fields of ModuleNames, or None. Raises: UserError for a model that cannot be used."""
    names = names_without_weights(auto_class, model)
    return None if names is None else {"modules": list(names.modules), "carriers": list(names.carriers)}


def check_adapter_names(recipe: Recipe, look_up: LookUp = names_from_child) -> None:
    """Check the names that the recipe asks for. Called after the data is prepared, by the process that supervises, or
    by every rank of another launcher.

    look_up: the names of a model's modules; a process that has imported torch gives names_without_weights. A model that
    cannot be built without its weights is checked where the ranks build it.
    Raises: UserError for a name that no module has, with the nearest ones.
    """
    if recipe.adapter is None:
        return
    targets, saved = _asked(recipe.adapter, recipe.model)
    if not targets and not saved:
        return
    names = look_up(CARDS[recipe.task].model.auto_class, recipe.model)
    if names is not None:
        names.check_saved(saved)
        names.check_targets(targets)


def _asked(adapter: AdapterSection, model: ModelSection) -> tuple[list[str], list[str]]:
    """(targets, modules to save) without those that come from the adapter that is trained further."""
    targets = [] if adapter.targets == "all-linear" else list(adapter.targets)
    source = adapter_of(model) if adapter.start == "continue" else None
    if source is None:
        return targets, adapter.save_modules
    own = source.targets if isinstance(source.targets, list) else []
    return (
        [name for name in targets if name not in own],
        [name for name in adapter.save_modules if name not in source.saved_modules],
    )
