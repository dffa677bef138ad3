"""All metrics: their modules, whether higher is better, and the prediction fields they need. Imports nothing heavy.

A metric is one file in this folder; its class says what it needs (`inputs`, `higher_is_better`). Tasks list on their cards
the fields of their predictions, and so take every metric that needs no others.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from finetune.errors import UserError
from finetune.metrics.inputs import INPUTS

Direction = Literal["max", "min"]


@dataclass(frozen=True)
class Entry:
    """One metric.

    module, type: the file in this folder and the class in it.
    fields: keys of a prediction's values that the metric takes, in the order of the module's `inputs`.
    direction: "max" if higher is better, "min" if lower is; None for a table.
    """

    module: str
    type: str
    fields: tuple[str, ...]
    direction: Direction | None = "max"


_BASE = "LocalMetric"
_DEFAULT_INPUTS = ("predictions", "references")  # of the base class, as higher_is_better: True


def _read_catalogue() -> dict[str, Entry]:
    """Every file of this folder that defines a metric, from its syntax tree: importing one takes seconds."""
    found: dict[str, Entry] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if f"({_BASE})" not in source:
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == _BASE for base in node.bases):
                found[path.stem] = _entry(path.stem, node)
    return found


def _entry(module: str, node: ast.ClassDef) -> Entry:
    values = {
        target.id: ast.literal_eval(item.value)
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(target := item.target, ast.Name)
        and target.id in ("inputs", "higher_is_better")
        and item.value is not None
    }
    fields = tuple(INPUTS[name].field for name in values.get("inputs", _DEFAULT_INPUTS))
    directions: dict[bool | None, Direction | None] = {True: "max", False: "min", None: None}
    return Entry(module, node.name, fields, directions[values.get("higher_is_better", True)])


CATALOGUE: dict[str, Entry] = _read_catalogue()
NAMES = tuple(CATALOGUE)


def metrics_of(*fields: str) -> tuple[str, ...]:
    """The metrics that a task can compute whose predictions have these fields."""
    return tuple(name for name, entry in CATALOGUE.items() if set(entry.fields) <= set(fields))


def direction(name: str) -> Direction:
    """Whether a higher ("max") or a lower ("min") value of a metric is better; `loss` counts as a metric here.

    Raises: UserError for an unknown name, and for a metric that is a table.
    """
    if name == "loss":
        return "min"
    better = find(name).direction
    if better is None:
        raise UserError(
            f"{name} is a table, so it cannot select the best checkpoint", remedy=f"Use one of {_scalars()}."
        )
    return better


def needs_text(names: Iterable[str]) -> bool:
    """Whether one of the metrics needs text that the model generates."""
    return any("text" in find(name).fields for name in names)


def find(name: str) -> Entry:
    """The entry of a metric. Raises: UserError for an unknown name, with the most similar one."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    near = get_close_matches(name, NAMES, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown metric {name!r}", remedy=f"{hint}The metrics are {', '.join(NAMES)}.")


def _scalars() -> str:
    return ", ".join(["loss", *(name for name, entry in CATALOGUE.items() if entry.direction)])
