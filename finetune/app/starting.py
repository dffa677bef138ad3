"""What a training starts from where model.source is an adapter: the recipe with the adapter's own values, and the merged
model in the cache.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.data.prepare.cache import cache_folder, digest, publish
from finetune.errors import Fault, RecipeFaults
from finetune.models.adapter_source import AdapterSource, adapter_of, source_files
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.machine import has_cuda
from finetune.recipe.recipe import Recipe
from finetune.tasks import CARDS
from finetune.terminal import print_line

KIND = "merged"


def take_adapter_values(loaded: LoadedRecipe) -> LoadedRecipe:
    """The recipe with the values of the adapter that it continues, where it leaves them out. No torch.

    Raises: RecipeFaults for values that are not those of the adapter.
    """
    section = loaded.recipe.adapter
    if not Path(loaded.recipe.model.source).is_dir():  # a hub id, or a package that may not be installed here
        return loaded
    source = adapter_of(loaded.recipe.model)
    if source is None or section is None or section.start == "merge":
        return loaded
    own, faults, origins = _values_of(source), [], dict(loaded.origins)
    taken: dict[str, Any] = {}
    for key, value in own.items():
        name, asked = f"adapter.{key}", getattr(section, key)
        origin = loaded.origins.get(name, "default")
        if origin == "default":
            taken[key], origins[name] = value, f"the adapter {source.folder}"
        elif key in ("kind", "rank", "alpha") and asked != value:
            faults.append(_fault(name, origin, asked, value, source))
    if faults:
        raise RecipeFaults(faults)
    recipe = loaded.recipe.model_copy(update={"adapter": section.model_copy(update=taken)})
    return replace(loaded, recipe=recipe, origins=origins)


def _values_of(source: AdapterSource) -> Mapping[str, Any]:
    settings = source.settings
    values: dict[str, Any] = {
        "kind": source.kind,
        "rank": int(settings["r"]),
        "alpha": float(settings["lora_alpha"]),
        "dropout": float(settings.get("lora_dropout") or 0.0),
        "save_modules": sorted(source.saved_modules),
    }
    return values if source.targets is None else {**values, "targets": source.targets}


def _fault(key: str, origin: str, asked: Any, value: Any, source: AdapterSource) -> Fault:
    message = f"differs from the adapter that is continued ({source.folder})"
    return Fault(origin, key, message, str(asked), f"{value}, or leave it out; adapter.start: merge adds a new adapter")


def start_model(recipe: Recipe) -> tuple[Recipe, str]:
    """The recipe to build the model by, and a line that says what it starts from ("" for a model that is no adapter).

    An adapter that is to be merged is merged once, by the first process of the machine that asks, before the process
    group exists; the others wait for its file lock. Raises: UserError if the merged model is not the adapter.
    """
    source = adapter_of(recipe.model)
    if source is None:
        return recipe, ""
    if recipe.adapter is not None and recipe.adapter.start == "continue":
        return recipe, f"model.source is an adapter of {source.base}, which is trained further: {source.describe()}"
    if not has_cuda():
        os.environ["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed, which transformers imports, warns that it found no GPU
    from finetune.models.continuing import write_merged  # torch: the verbs that open a recipe need not wait for it

    card = CARDS[recipe.task].model
    key = digest(KIND, 1, card.auto_class, source_files(recipe.model), recipe.model.config, source.base)

    def write(folder: Path) -> None:
        write_merged(card, recipe.model, source, folder)

    with _lock(key):
        folder = publish(KIND, key, write, about=str(source.folder), notify=print_line)
    model = recipe.model.model_copy(update={"source": str(folder), "revision": "main"})
    what = "all weights are trained" if recipe.adapter is None else "a new adapter is added"
    return recipe.model_copy(update={"model": model}), (
        f"model.source is an adapter: merged into {source.base}, {what} ({folder})"
    )


@contextmanager
def _lock(key: str) -> Iterator[None]:
    """One process of this machine at a time. Released when a process dies."""
    path = cache_folder() / f"{KIND}-{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
