"""What names a training: the values of all keys but those of the machine. Two recipes that agree in them give the same
numbers, wherever they run.

A stored recipe is parsed by today's schema and compared key by key, so that a key that is new since (with its default) and
an old spelling of a value are no differences. Keys whose field says json_schema_extra={"machine": True} do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.recipe.document import Document, dotted
from finetune.recipe.draft import Draft
from finetune.recipe.faults import faults_of, show_value
from finetune.recipe.paths import absolute_paths
from finetune.recipe.recipe import Recipe
from finetune.recipe.schema import schema_of
from finetune.recipe.secrets import mask
from finetune.recipe.section import Section
from finetune.recipe.yaml import read_document

SHOWN = 8  # differences that are listed
_MISSING = object()


def training_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe without the keys of the machine, as JSON."""
    kept: dict[str, Any] = _without_machine(recipe, recipe.model_dump(mode="json"))
    return kept


def stored_values(file: Path) -> dict[str, Any]:
    """What a recipe.yaml of a run folder says. Raises: UserError if it cannot be read."""
    draft = Draft(read_document(file))
    absolute_paths(draft, file.resolve().parent)
    return draft.values


def training_differences(stored: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """["training.learning_rate: 3e-05 in the run, 5e-05 now", ...]; [] if both name the same training.

    stored: values of a recipe.yaml, or `training_values` that were kept elsewhere.
    """
    kind, values = type(recipe), {"name": recipe.name, **stored}
    if values.get("task") != recipe.task:
        return [_line("task", values.get("task"), recipe.task)]
    try:
        theirs = kind.model_validate(values)
    except ValidationError as error:
        faults = faults_of(error, Draft(Document("the run's recipe", values)), schema_of(kind)).values()
        return [f"{fault.key}: {fault.message} ({fault.value} in the run)" for fault in faults]
    return list(_differences(training_values(theirs), training_values(recipe), ()))


def list_differences(differences: Sequence[str]) -> str:
    """The first few, one per line."""
    more = [f"and {len(differences) - SHOWN} more"] if len(differences) > SHOWN else []
    return "".join(f"\n    {line}" for line in [*differences[:SHOWN], *more])


def _without_machine(section: Any, values: Any) -> Any:
    """values: the dump of `section`."""
    if isinstance(section, (list, tuple)):
        return [_without_machine(inner, value) for inner, value in zip(section, values, strict=True)]
    if not isinstance(section, Section):
        return values
    kept = {}
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if not (isinstance(extra, dict) and extra.get("machine")):
            kept[name] = _without_machine(getattr(section, name), values[name])
    return kept


def _differences(theirs: Any, ours: Any, path: tuple[str | int, ...]) -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*theirs, *(key for key in ours if key not in theirs)]:
            yield from _differences(theirs.get(key, _MISSING), ours.get(key, _MISSING), (*path, key))
    elif _are_sections(theirs) and _are_sections(ours) and len(theirs) == len(ours):
        for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
            yield from _differences(their, our, (*path, index))
    elif theirs not in (ours, mask(ours, str(path[-1]) if path else "")):  # earlier versions stored masked recipes
        yield _line(dotted(path), theirs, ours)


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _line(key: str, theirs: Any, ours: Any) -> str:
    shown = ["(not given)" if value is _MISSING else show_value(value, key) for value in (theirs, ours)]
    return f"{key}: {shown[0]} in the run, {shown[1]} now"
