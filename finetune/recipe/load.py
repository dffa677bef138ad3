"""Load a recipe: from a file and its overrides to a frozen recipe, or to all its faults at once. Needs no torch and no
transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.errors import Fault, RecipeFaults
from finetune.recipe.card import TaskCard
from finetune.recipe.checks import find_contradictions
from finetune.recipe.checks.context import CheckContext
from finetune.recipe.checks.warnings import find_warnings
from finetune.recipe.document import KeyPath
from finetune.recipe.draft import DEFAULT_EPOCHS, DERIVED, Draft
from finetune.recipe.explain import dump_yaml, explain, origins_of
from finetune.recipe.faults import faults_of, nearest, show_value
from finetune.recipe.paths import absolute_paths
from finetune.recipe.recipe import Recipe, recipe_type
from finetune.recipe.schema import schema_of
from finetune.recipe.secrets import MASK, secrets_in
from finetune.recipe.yaml import read_document

__all__ = ["LoadedRecipe", "dump_yaml", "load_recipe"]

SECTIONS: tuple[KeyPath, ...] = (
    *((name,) for name in ("model", "data", "options", "training", "parallel", "evaluation", "checkpoint", "tracking")),
    ("model", "config"),
    ("data", "columns"),
)


@dataclass(frozen=True)
class LoadedRecipe:
    """origins: dotted key -> "recipes/x.yaml:12", "--set training.epochs", "default", or "derived ...".

    warnings: what is allowed but rarely intended, each with its file and line.
    places: where each key and section is written, the recipe itself at "". alone: "data.train.0" -> "data.train" where that
    was written as one source, not as a list.
    """

    recipe: Recipe
    origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    alone: Mapping[str, str] = field(default_factory=dict)

    def dump_yaml(self) -> str:
        """The resolved recipe as YAML, as `recipe.yaml` of a run folder holds it."""
        return dump_yaml(self.recipe)

    def locate(self, key: str) -> tuple[str, str]:
        """Where a dotted key or the nearest section around it is written, and the key as the user wrote it."""
        near = key
        while near and near not in self.places:
            near = near.rpartition(".")[0]
        for listed, alone in self.alone.items():
            if key == listed or key.startswith(f"{listed}."):
                key = alone + key.removeprefix(listed)
        return self.places.get(near, "recipe"), key

    def explain(self) -> list[tuple[str, str, str]]:
        """Rows of key, value, origin."""
        return explain(self.recipe, self.origins)


def load_recipe(
    path: Path, sets: Sequence[str] = (), cards: Mapping[str, TaskCard] | None = None, *, here: bool = True
) -> LoadedRecipe:
    """Read, override, resolve and check a recipe.

    sets: "training.learning_rate=3e-5", ..., applied in order; values are YAML. cards: all tasks, by name.
    here: also check what depends on this machine (missing files, fp16 without CUDA); False for a recipe that runs
    elsewhere.
    Raises: UserError if the file is not a YAML mapping; RecipeFaults with all other faults.
    """
    cards = cards or {}
    draft = Draft(read_document(path))
    draft.override(sets)
    draft.fill_empty_sections(SECTIONS)
    card, task_faults = _choose_task(draft, cards)
    absolute_paths(draft, path.resolve().parent)
    if card is not None:
        _fill(draft, card)
    kind = recipe_type(card) if card is not None else Recipe
    recipe, faults = _validate(draft, kind)
    context = CheckContext(recipe, card, draft) if recipe is not None and card is not None else None
    found = _unlike(find_contradictions(context, here=here), faults) if context else []
    secret = [
        Fault(draft.place(path), draft.shown(path), what, MASK, "env:NAME, which names an environment variable")
        for path, what in secrets_in(draft.values)
    ]
    everything = [*draft.faults, *secret, *task_faults, *faults.values(), *found]
    if everything:
        raise RecipeFaults(_in_order(everything))
    assert recipe is not None and context is not None
    warnings = (*draft.notes, *find_warnings(context))
    return LoadedRecipe(recipe, origins_of(recipe, draft.origin), warnings, *draft.written())


def _choose_task(draft: Draft, cards: Mapping[str, TaskCard]) -> tuple[TaskCard | None, list[Fault]]:
    """The card of `task`, or of the nearest name; without a card everything but the options can be checked."""
    task = draft.get(("task",))
    if isinstance(task, str) and task in cards:
        return cards[task], []
    near = nearest(str(task).replace("-", "_"), list(cards))
    if task is None:
        fault = Fault(draft.place(("task",)), "task", "missing: the task to train for", allowed=", ".join(cards))
    else:
        fault = Fault(draft.place(("task",)), "task", "no such task", show_value(task), ", ".join(cards), near)
    draft.values["task"] = near
    if near:
        return cards[near], [fault]
    draft.values.pop("options", None)
    return None, [fault]


def _fill(draft: Draft, card: TaskCard) -> None:
    """Write defaults that depend on other values into the draft."""
    training = draft.values.setdefault("training", {})
    if isinstance(training, dict) and training.get("epochs") is None and training.get("steps") is None:
        draft.put(("training", "epochs"), DEFAULT_EPOCHS, "default")
    evaluation = draft.values.setdefault("evaluation", {})
    if isinstance(evaluation, dict):
        if evaluation.get("metrics") is None:
            draft.put(("evaluation", "metrics"), list(card.metrics.default), f"{DERIVED}default of {card.name}")
        metrics = evaluation["metrics"]
        if not evaluation.get("best") and isinstance(metrics, list):
            best = card.metrics.best if card.metrics.best in metrics else "loss"
            draft.put(("evaluation", "best"), best, f"{DERIVED}default of {card.name}")
    tracking = draft.values.setdefault("tracking", {})
    if isinstance(tracking, dict) and not tracking.get("group") and isinstance(draft.get(("name",)), str):
        draft.put(("tracking", "group"), draft.values["name"], f"{DERIVED}the recipe's name")


def _validate(draft: Draft, kind: type[Recipe]) -> tuple[Recipe | None, dict[KeyPath, Fault]]:
    """The recipe; or the faults in its values, and the recipe without the faulty values, if that is valid."""
    try:
        return kind.model_validate(draft.values), {}
    except ValidationError as error:
        faults = faults_of(error, draft, schema_of(kind))
    return _validate_rest(draft, kind, faults), faults


def _validate_rest(draft: Draft, kind: type[Recipe], faults: Mapping[KeyPath, Fault]) -> Recipe | None:
    """The recipe without the faulty values, so that contradictions among the others are reported in the same run."""
    rest = deepcopy(draft.values)
    for path in sorted(faults, key=len, reverse=True):
        _discard(rest, path)
    rest.setdefault("name", "unnamed")
    rest.setdefault("model", {"source": "missing"})
    data = rest.setdefault("data", {})
    if isinstance(data, dict) and not data.get("train"):
        data["train"] = [{"source": "missing"}]
    try:
        return kind.model_validate(rest)
    except ValidationError:
        return None


def _discard(values: dict[str, Any], path: KeyPath) -> None:
    if not path:  # a fault of the whole
        return
    inner: Any = values
    for key in path[:-1]:
        inner = inner.get(key) if isinstance(inner, dict) else inner[key] if _indexes(inner, key) else None
        if inner is None:
            return
    if isinstance(inner, dict):
        inner.pop(path[-1], None)
    elif _indexes(inner, path[-1]):
        inner[path[-1]] = None


def _indexes(inner: Any, key: Any) -> bool:
    return isinstance(inner, list) and isinstance(key, int) and key < len(inner)


def _unlike(found: Sequence[Fault], faults: Mapping[KeyPath, Fault]) -> list[Fault]:
    """Contradictions that do not merely follow from a fault in one of the keys that they rest on."""
    broken = {fault.key for fault in faults.values()}
    meant = {fault.nearest for fault in faults.values()}

    def follows(fault: Fault) -> bool:
        if fault.key in meant:
            return True
        above = any(fault.key.startswith(f"{section}.") for section in broken)
        return above or fault.key in broken or any(_touch(key, other) for key in fault.depends_on for other in broken)

    return [fault for fault in found if not follows(fault)]


def _touch(key: str, other: str) -> bool:
    """Whether one is the other, or a section around it."""
    return f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}.")


def _in_order(faults: Sequence[Fault]) -> list[Fault]:
    """In the order of the file, overrides last."""

    def position(fault: Fault) -> tuple[bool, int]:
        line = fault.where.rpartition(":")[2]
        return (fault.where.startswith("--set"), int(line) if line.isdigit() else 0)

    return sorted(faults, key=position)
