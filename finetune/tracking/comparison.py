"""What differs between runs: recipe, data, versions, machine, figures; and between two of them each example."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import UserError
from finetune.recipe.identity import stored_values
from finetune.recipe.secrets import mask
from finetune.tracking.figures import figures_of
from finetune.tracking.journal import describe_unreadable
from finetune.tracking.judgement.paired import Difference, Wins, count_wins, differences
from finetune.tracking.judgement.predictions import Predictions, prediction_fields, read_predictions
from finetune.tracking.run import Run
from finetune.tracking.run_summary import RunSummary, summarize

ABSENT = "(not given)"
NOT_COMPARED = ("name", "tracking.group")  # of a recipe: what a run is called


@dataclass(frozen=True)
class Compared:
    """What is equal in all runs is left out of `recipe`, `data`, `versions` and `machine`: key -> one value for each run.

    figures: metric -> one value for each run, None where a run has none. differences, wins: of the first two runs on the
    validation examples of both. notes: what could not be compared, and why.
    """

    runs: tuple[RunSummary, ...]
    recipe: Mapping[str, tuple[str, ...]]
    data: Mapping[str, tuple[str, ...]]
    versions: Mapping[str, tuple[str, ...]]
    machine: Mapping[str, tuple[str, ...]]
    figures: Mapping[str, tuple[float | None, ...]]
    differences: tuple[Difference, ...] = ()
    wins: Wins | None = None
    examples: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)


def compare_runs(paths: Sequence[Path]) -> Compared:
    """Of one run alone its figures. Raises: UserError for a folder that is no run."""
    runs = [Run.open(path) for path in paths]
    facts = [run.read() for run in runs]
    recipes = [_recipe(run) for run in runs]
    damaged, notes = _damaged(runs), _other_tasks(runs, recipes)
    comparable = len(runs) > 1 and not notes
    found, wins, examples = _compare_examples(runs[0], runs[1], facts, notes) if comparable else ([], None, 0)
    if len(runs) > 2 and not notes:
        notes.append("examples are compared between the first two runs only")
    return Compared(
        runs=tuple(summarize(run.path) for run in runs),
        recipe=_unequal(recipes, without=NOT_COMPARED),
        data=_unequal([_data(one) for one in facts]),
        versions=_unequal([_flat(one.get("versions")) for one in facts]),
        machine=_unequal([_flat(one.get("machine")) for one in facts]),
        figures=_figures(runs, facts),
        differences=tuple(found),
        wins=wins,
        examples=examples,
        notes=(*damaged, *notes),
    )


def _damaged(runs: Sequence[Run]) -> list[str]:
    """A note for each run whose figures are not all there."""
    found = {run.path.name: describe_unreadable(run.metrics_file) for run in runs if run.metrics_file.is_file()}
    missing = [f"{run.path.name} has no {run.metrics_file.name}" for run in runs if not run.metrics_file.is_file()]
    return [*missing, *(f"{name}: {what} of metrics.jsonl, and left out" for name, what in found.items() if what)]


def _other_tasks(runs: Sequence[Run], recipes: Sequence[Mapping[str, str]]) -> list[str]:
    """A note if the runs were trained for different tasks: their figures say nothing of each other."""
    tasks: dict[str, list[str]] = {}
    for run, recipe in zip(runs, recipes, strict=True):
        tasks.setdefault(recipe.get("task", ABSENT), []).append(run.path.name)
    if len(tasks) == 1:
        return []
    listed = "; ".join(f"{task}: {', '.join(names)}" for task, names in tasks.items())
    return [
        f"the runs have different tasks ({listed}): figures of one name, the loss included, do not measure the same, and "
        "examples are not compared"
    ]


def _recipe(run: Run) -> dict[str, str]:
    try:
        return _flat(mask(stored_values(run.recipe_file)))
    except UserError:
        return {"recipe.yaml": "damaged"}


def _data(facts: Mapping[str, Any]) -> dict[str, str]:
    """Rows and digest of each split."""
    found = {}
    for split, one in (facts.get("data") or {}).items():
        if isinstance(one, Mapping):
            found[f"{split} rows"] = f"{one.get('rows', 0):,}"
            found[f"{split} content"] = str(one.get("content") or one.get("digest") or "")[:12]
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}, "c": [{"d": 2}]} -> {"a.b": "1", "c[0].d": "2"}."""
    flat: dict[str, str] = {}
    if isinstance(value, Mapping):
        for key, item in value.items():
            flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for index, item in enumerate(value):
            flat |= _flat(item, f"{prefix}[{index}]")
    else:
        flat[prefix] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return flat


def _unequal(trees: Sequence[Mapping[str, str]], without: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    keys = dict.fromkeys(key for tree in trees for key in tree if key not in without)
    rows = {key: tuple(tree.get(key, ABSENT) for tree in trees) for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _best_step(facts: Mapping[str, Any]) -> int | None:
    step = (facts.get("summary") or {}).get("best_step")
    return int(step) if isinstance(step, (int, float)) else None


def _figures(runs: Sequence[Run], facts: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float | None, ...]]:
    """Of the best checkpoint of each run."""
    steps = [_best_step(one) for one in facts]
    each = [figures_of(run, step) if step is not None else {} for run, step in zip(runs, steps, strict=True)]
    return {name: tuple(one.get(name) for one in each) for name in dict.fromkeys(name for one in each for name in one)}


def _compare_examples(
    first: Run, second: Run, facts: Sequence[Mapping[str, Any]], notes: list[str]
) -> tuple[list[Difference], Wins | None, int]:
    """Of the validation examples of the best checkpoints, if both evaluated the same data."""
    contents = [((one.get("data") or {}).get("validation") or {}).get("content") for one in facts[:2]]
    if contents[0] is None or contents[0] != contents[1]:
        notes.append("examples are not compared: the runs were evaluated on different data, or before it was recorded")
        return [], None, 0
    read, other_read = _read(first, facts[0]), _read(second, facts[1])
    if read is None or other_read is None:
        notes.append("examples are not compared: the predictions of a best checkpoint cannot be read")
        return [], None, 0
    (ids, one), (other_ids, other) = read, other_read
    if not np.array_equal(ids, other_ids):
        notes.append("examples are not compared: the runs left out different rows")
        return [], None, 0
    metrics = [name for name in _figures([first], facts[:1]) if not name.startswith("test_")]
    return differences(one, other, metrics), count_wins(ids, one, other), len(ids)


def _read(run: Run, facts: Mapping[str, Any]) -> tuple[np.ndarray, Predictions] | None:
    """(ids, predictions) by ascending id; None where they cannot be read."""
    step = _best_step(facts)
    if step is None:
        return None
    path = run.predictions / f"validation-step-{step:08d}.jsonl"
    fields = [*prediction_fields(figures_of(run, step)), "id"]
    found = read_predictions(path, fields, ())
    if found is None or "id" not in found.columns:
        return None
    try:
        ids = np.asarray([operator.index(value) for value in found.columns["id"]], np.int64)
    except (TypeError, OverflowError):  # no ids of examples: the file was edited
        return None
    order = np.argsort(ids, kind="stable")
    columns = {name: column[order] for name, column in found.columns.items() if name != "id"}
    return ids[order], Predictions(columns, None, found.multi_label)
