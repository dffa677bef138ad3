"""The trials of a sweep: their recipes, checked before anything starts, and what their run folders tell."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.app.opening import open_recipe
from finetune.app.sweeping.halving import Observation
from finetune.errors import Fault, RecipeFaults, UserError
from finetune.metrics.catalogue import direction
from finetune.recipe.identity import training_values
from finetune.recipe.json_file import read_json
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.recipe import Recipe
from finetune.tasks.choice import BEST_METRIC
from finetune.tracking.journal import read_rows
from finetune.tracking.run import Run

# Trials are compared by their evaluations, so these are the same in all of them.
EQUAL = ("evaluation", "data.validation", "data.validation_fraction", "task", "name")


@dataclass(frozen=True)
class Trial:
    """name: of its folder. values: recipe key -> YAML, what distinguishes it from the others."""

    name: str
    values: Mapping[str, str]

    @property
    def sets(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.values.items()]

    def describe(self) -> str:
        """For people: "learning_rate=1e-05, seed=1"."""
        return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items())

    def command(self, recipe: str, sets: Sequence[str]) -> str:
        """What a person types to train it once more, in a run folder of its own."""
        words = ["finetune", "train", recipe]
        for one in (*sets, *self.sets):
            words += ["--set", one]
        return shlex.join(words)


def name_trials(points: Sequence[Mapping[str, str]]) -> list[Trial]:
    digits = max(2, len(str(len(points))))
    return [Trial(f"trial-{number:0{digits}d}", point) for number, point in enumerate(points, 1)]


def check_trials(recipe: str, sets: Sequence[str], trials: Sequence[Trial], metric: str) -> list[LoadedRecipe]:
    """The recipe of each trial. Reads no data. metric: that of --metric, which is among `sets`; "" without the option.

    Raises: RecipeFaults with those of all trials, each once; UserError where trials cannot be compared.
    """
    keys = list(trials[0].values)
    _check_keys(keys, sets)
    loaded: list[LoadedRecipe] = []
    faults: dict[tuple[str, str, str], Fault] = {}
    for trial in trials:
        try:
            loaded.append(open_recipe(recipe, [*sets, *trial.sets]))
        except RecipeFaults as error:
            for fault in error.faults:
                value = (
                    "" if fault.message.startswith("unknown key") else fault.value
                )  # the key is wrong, not the value
                faults.setdefault((fault.where, fault.message, value), _of_option(fault, keys, metric))
    if faults:
        raise RecipeFaults(list(faults.values()))
    _check_different(loaded, trials)
    _check_comparable(loaded[0].recipe)
    return loaded


def _check_keys(keys: Sequence[str], sets: Sequence[str]) -> None:
    fixed = {text.partition("=")[0].strip() for text in sets}
    for key in keys:
        where = f"--grid {key}"
        if key in fixed:
            raise UserError(
                "--set gives this key one value for all trials", where=where, remedy="Remove one of the two."
            )
        if any(key == equal or key.startswith(f"{equal}.") for equal in EQUAL):
            what = "trials are compared by their evaluations, so this key is the same in all of them"
            raise UserError(what, where=where, remedy="Give it with --set.")


def _of_option(fault: Fault, keys: Sequence[str], metric: str) -> Fault:
    """With the option that a person gave in place of the --set that it became."""
    key = fault.where.removeprefix("--set ")
    if metric and fault.where == "--set evaluation.best":
        return replace(fault, where="--metric")
    return replace(fault, where=f"--grid {key}") if key in keys else fault


def _check_different(loaded: Sequence[LoadedRecipe], trials: Sequence[Trial]) -> None:
    seen: dict[str, Trial] = {}
    for one, trial in zip(loaded, trials, strict=True):
        first = seen.setdefault(repr(training_values(one.recipe)), trial)
        if first is not trial:
            what = f"{first.describe()} and {trial.describe()} are the same training"
            remedy = "Leave out what is the same, and keys that change where it runs, but not what is learned."
            raise UserError(what, where="--grid", remedy=remedy)


def _check_comparable(recipe: Recipe) -> None:
    data = recipe.data
    if not data.validation and not data.validation_fraction:
        raise UserError(
            "the recipe has no validation data, by which trials are compared",
            where="data.validation",
            remedy="Give some, or hold some out with --set data.validation_fraction=0.1.",
        )


@dataclass(frozen=True)
class Measure:
    """The metric that trials are compared by. mode: max or min."""

    metric: str
    mode: str

    def score(self, value: Any) -> float:
        """Higher is better; minus infinity for what is no finite number."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return -math.inf
        return float(value) if self.mode == "max" else -float(value)

    def value(self, score: float) -> float | None:
        """The value of a score; None for minus infinity."""
        return None if score == -math.inf else score if self.mode == "max" else -score


def observe(folder: Path, measure: Measure, *, failed: bool = False) -> Observation:
    """What the run folder of a trial tells, whatever state it is in; a folder that is not there tells nothing."""
    run = Run(folder)
    try:
        facts = run.read()
    except UserError:  # it has not begun
        return Observation(failed=failed)
    scores: dict[int, float] = {}
    instead = _instead(run)
    metric = Measure(instead, direction(instead)) if instead else measure
    for row in read_rows(run.metrics_file):
        if row.get("split") == "validation" and isinstance(row.get("step"), int):
            scores[row["step"]] = metric.score(row.get(metric.metric))
    total = (facts.get("facts") or {}).get("total_steps")
    return Observation(
        evaluations=tuple(sorted(scores.items())),
        total_steps=total if isinstance(total, int) else 0,
        finished=facts.get("status") == "done",
        failed=failed,
    )


def steps_of(folder: Path) -> int:
    """Optimizer steps that were computed for a trial, those that a kill lost not included."""
    try:
        sessions = Run(folder).read().get("sessions") or []
    except UserError:
        return 0
    ends = [one["step"] for one in sessions if isinstance(one.get("step"), int)]
    rows = [row["step"] for row in read_rows(Run(folder).metrics_file) if isinstance(row.get("step"), int)]
    return max([*ends, *rows], default=0)


def measure_of(folders: Sequence[Path], measure: Measure) -> Measure:
    """The measure, or what the task took in its place because it is not defined for the data."""
    for folder in folders:
        if instead := _instead(Run(folder)):
            return Measure(instead, direction(instead))
    return measure


def _instead(run: Run) -> str:
    try:
        return str(read_json(run.artifacts / "artifacts.json")["settings"].get(BEST_METRIC) or "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
