"""A run in one line: what it trains, how far it is, how good its best evaluation was. Read from the run folder alone."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune.errors import UserError
from finetune.metrics.catalogue import CATALOGUE
from finetune.recipe.yaml import read_document
from finetune.tasks import CARDS
from finetune.tracking.journal import read_rows
from finetune.tracking.retention import labeled_name
from finetune.tracking.run import Run


@dataclass(frozen=True)
class RunSummary:
    """status: that of run.json, "interrupted" for a run whose process is gone, "damaged" for one that cannot be read.

    metric, value: of the best evaluation; "" and None without one. step, total: optimizer steps; 0 where unknown.
    age: seconds since it was started last. failure: why a failed run ended, "" where that is not recorded.
    """

    path: Path
    name: str
    task: str
    status: str
    metric: str = ""
    value: float | None = None
    step: int = 0
    total: int = 0
    age: float = 0.0
    failure: str = ""


def find_runs(root: Path) -> list[RunSummary]:
    """The runs in a folder and two levels below, the newest start first. Damaged ones are among them, also those that have
    lost their run.json: what a training wrote beside it tells.
    """
    levels = ("", "*/", "*/*/")
    folders = [file.parent for level in levels for file in root.glob(f"{level}run.json")]
    left = [file.parent for level in levels for file in root.glob(f"{level}metrics.jsonl")]
    folders += [folder for folder in left if (folder / "recipe.yaml").exists()]
    return sorted(map(summarize, dict.fromkeys(folders)), key=lambda one: one.age)


def summarize(folder: Path) -> RunSummary:
    """The summary of one run folder. It does not raise for a damaged one."""
    run = Run(folder)
    try:
        facts = run.read()
    except UserError:
        return RunSummary(folder, folder.parent.name, "", "damaged", age=_age(run, {}))
    summary, details = _mapping(facts.get("summary")), _mapping(facts.get("facts"))
    metric, value, step = str(summary.get("best_metric") or ""), summary.get("best_value"), summary.get("steps")
    if not isinstance(value, (int, float)) or step is None:
        rows, last = _evaluations(run)
        step = step if step is not None else max(last, _saved_step(run))
        metric, value = _best(rows, metric or _chosen_metric(run, facts))
    status = status_of(run, facts)
    return RunSummary(
        folder,
        str(facts.get("name") or folder.parent.name),
        str(facts.get("task") or ""),
        status,
        metric,
        float(value) if isinstance(value, (int, float)) else None,
        int(step or 0),
        int(details.get("total_steps") or 0),
        _age(run, facts),
        failure_of(facts) if status == "failed" else "",
    )


def failure_of(facts: Mapping[str, Any]) -> str:
    """What ended a failed run, in one line; "" where run.json does not say it."""
    return " ".join(str(_mapping(facts.get("summary")).get("failure") or "").split())


def status_of(run: Run, facts: Mapping[str, Any]) -> str:
    """The status in run.json; "interrupted" if that is "running" but the training process on this host is gone."""
    status = str(facts.get("status", "failed"))
    here = _mapping(facts.get("process")).get("host") == platform.node()
    return "interrupted" if status == "running" and here and run.trainer is None else status


MAX_DIGITS = 18  # of a step
_NO_FIGURES = ("step", "epoch", "split", "time")


def _saved_step(run: Run) -> int:
    """The step of the latest checkpoint, which a stopped run saves between two rows of its journal; 0 without one."""
    digits = labeled_name(run.checkpoints / "latest").removeprefix("step-")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < MAX_DIGITS else 0


def _evaluations(run: Run) -> tuple[list[dict[str, Any]], int]:
    """(the evaluations of the validation split after the first step, the last step that was logged)."""
    rows, step = list[dict[str, Any]](), 0
    for one in read_rows(run.metrics_file):
        number = one.get("step")
        step = max(step, int(number)) if isinstance(number, (int, float)) else step
        if one.get("split") == "validation" and number:
            rows.append(one)
    return rows, step


def _chosen_metric(run: Run, facts: Mapping[str, Any]) -> str:
    """The metric that selects the best checkpoint; "loss" where the recipe cannot be read and the task is not known."""
    try:
        named = read_document(run.recipe_file).values["evaluation"]["best"]
    except (UserError, KeyError, TypeError):
        named = ""
    card = CARDS.get(str(facts.get("task")))
    return str(named or (card.metrics.best if card else "loss"))


def _best(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[str, float | None]:
    """(metric, its best value); of rows that lack it, the first figure that they have."""
    if rows and metric not in rows[-1]:
        metric = next((key for key in rows[-1] if key not in _NO_FIGURES), "")
    values = [row[metric] for row in rows if isinstance(row.get(metric), (int, float))]
    if not values:
        return metric if rows else "", None
    lowest = metric == "loss" or (metric in CATALOGUE and CATALOGUE[metric].direction == "min")
    return metric, min(values) if lowest else max(values)


def _age(run: Run, facts: Mapping[str, Any]) -> float:
    sessions = facts.get("sessions")
    last = sessions[-1] if isinstance(sessions, list) and sessions else {}
    started = _mapping(last).get("started")
    if not isinstance(started, (int, float)):
        try:
            started = datetime.fromisoformat(str(facts["created"])).timestamp()
        except (KeyError, ValueError):
            written = run.file if run.file.is_file() else run.metrics_file
            started = written.stat().st_mtime if written.is_file() else 0.0
    return max(0.0, time.time() - started)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
