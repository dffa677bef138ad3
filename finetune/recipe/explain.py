"""Every resolved value of a recipe, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from finetune.recipe.document import KeyPath, dotted
from finetune.recipe.recipe import Recipe
from finetune.recipe.secrets import mask
from finetune.recipe.yaml_dialect import dump, one_line


def dump_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, for people: every value explicit, what looks like a secret masked."""
    return dump(mask(recipe.model_dump(mode="json")))


def leaves(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Paths and values of everything but sections: scalars, empty sections, lists of scalars."""
    if isinstance(values, dict) and values:
        for key, item in values.items():
            yield from leaves(item, (*path, key))
    elif isinstance(values, list) and any(isinstance(item, dict) for item in values):
        for index, item in enumerate(values):
            yield from leaves(item, (*path, index))
    else:
        yield path, values


def origins_of(recipe: Recipe, origin: Callable[[KeyPath], str]) -> Mapping[str, str]:
    """Dotted key -> origin, for every leaf of the resolved recipe."""
    return {dotted(path): origin(path) for path, _ in leaves(recipe.model_dump(mode="json"))}


def explain(recipe: Recipe, origins: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Rows of key, value as YAML would write it, origin; in the order of the schema."""
    rows = []
    for path, value in leaves(mask(recipe.model_dump(mode="json"))):
        key = dotted(path)
        rows.append((key, one_line(value), origins.get(key, "default")))
    return rows
