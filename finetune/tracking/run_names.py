"""What a run is called where several are listed: the recipe and what differs, so that no two runs have the same name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.recipe.identity import stored_values
from finetune.recipe.recipe import Recipe
from finetune.recipe.secrets import mask
from finetune.terminal import printable
from finetune.tracking.run import Run, shown

MAX_SIBLINGS = 500  # newest runs of the folder that a name is compared with
MAX_KEYS = 4  # that a name has beside the usual ones
MAX_VALUE = 40  # characters
NOT_NAMED = ("name", "tracking", "checkpoint")  # of a recipe: they do not change what is trained


def display_name(recipe: Recipe) -> str:
    """The recipe and what usually differs between its runs: "quickstart lr=0.0003 batch=32 epochs=2 seed=42"."""
    training = recipe.training
    length = f"steps={training.steps}" if training.steps else f"epochs={training.epochs:g}" if training.epochs else ""
    adapter = f"{recipe.adapter.kind}={recipe.adapter.rank}" if recipe.adapter is not None else ""
    rate = f"lr={training.learning_rate:g}"
    return " ".join(
        filter(None, [recipe.name, rate, f"batch={training.global_batch}", length, adapter, f"seed={recipe.seed}"])
    )


def unique_name(run: Run, recipe: Recipe) -> str:
    """`display_name`, and where another run of the same folder has it, the values of the recipe that differ from that run's;
    a number where none does: "quickstart lr=0.0003 batch=32 seed=42 weight_decay=0.1", "... #2".

    A run keeps the name that it was given once, in run.json.
    """
    kept = (run.read().get("wandb") or {}).get("name")
    if kept:
        return str(kept)
    name, values = display_name(recipe), _flat(shown(recipe))
    others = _siblings(run)
    same = [(called, other) for called, other in others if called == name or called.startswith(f"{name} ")]
    twins = sorted((called for called, other in same if other == values), key=len)
    if twins:
        name = twins[0]
    else:
        differing = [key for key in values if any(other.get(key) != values[key] for _, other in same)]
        name = " ".join([name, *(f"{_short(key, values)}={_text(values[key])}" for key in differing[:MAX_KEYS])])
    taken, number, chosen = {called for called, _ in others}, 1, name
    while chosen in taken:
        number += 1
        chosen = f"{name} #{number}"
    return printable(str(mask(chosen)))


def _siblings(run: Run) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, flat values of the recipe) of the other runs in the same folder that have a name."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for file in sorted(run.path.resolve().parent.glob("*/run.json"), reverse=True)[:MAX_SIBLINGS]:
        other = Run(file.parent)
        if other.path.resolve() == run.path.resolve():
            continue
        try:
            called = (other.read().get("wandb") or {}).get("name")
            if called:
                found.append((str(called), _flat(mask(stored_values(other.recipe_file)))))
        except UserError:  # damaged: `finetune runs` says so
            continue
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if not prefix and key in NOT_NAMED:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(key: str, values: Mapping[str, Any]) -> str:
    """The last part of a key, if no other key ends so."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in values) == 1 else key


def _text(value: Any) -> str:
    text = (
        f"{value:g}"
        if isinstance(value, float)
        else Path(value).name or value
        if isinstance(value, str)
        else str(value)
    )
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"
