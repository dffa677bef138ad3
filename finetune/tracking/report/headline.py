"""The head of a report: which metric counts, its best evaluation, the headline figures, the status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from finetune.errors import UserError
from finetune.metrics import direction
from finetune.recipe.yaml import read_document
from finetune.tasks import CARDS
from finetune.tracking.judgement.intervals import Interval
from finetune.tracking.report.curves import Curves
from finetune.tracking.retention import labeled_name
from finetune.tracking.run import Run
from finetune.tracking.series import Series
from finetune.tracking.shared_rows import shared_with_train
from finetune.units import format_count, format_figure, format_number, format_seconds


@dataclass(frozen=True)
class Card:
    """One headline figure."""

    label: str
    value: str
    note: str = ""


def metric_of(run: Run, facts: Mapping[str, Any]) -> str:
    """The metric that selects the best checkpoint: from the summary, the recipe, or the task."""
    named = facts.get("summary", {}).get("best_metric") or _evaluation_key(run, "best")
    card = CARDS.get(str(facts.get("task")))
    return str(named or (card.metrics.best if card else "loss"))


def _evaluation_key(run: Run, key: str) -> Any:
    """A value of the recipe's `evaluation`; None if recipe.yaml is damaged, which must not hide the curves."""
    try:
        return read_document(run.recipe_file).values["evaluation"][key]
    except (UserError, KeyError, TypeError):
        return None


def best_evaluation(run: Run, facts: Mapping[str, Any], curves: Curves, metric: str) -> tuple[int, float, float] | None:
    """(step, epoch, value of `metric`) of the best checkpoint, None without evaluations.

    As the summary says, or the label checkpoints/best while the run trains; otherwise from the curve.
    """
    series = curves.get(("validation", metric))
    if series is None or not (series.steps > 0).any():  # measured before training alone (evaluation.at_start)
        return None
    series = Series(*(column[series.steps > 0] for column in (series.steps, series.epochs, series.values)))
    steps = series.steps.astype(int).tolist()
    labeled = step_of(labeled_name(run.checkpoints / "best"))
    known = [step for step in (facts.get("summary", {}).get("best_step"), labeled) if step in steps]
    if known:
        index = steps.index(known[0])
    else:
        index = int(series.values.argmin() if mode_of(run, metric) == "min" else series.values.argmax())
    return steps[index], float(series.epochs[index]), float(series.values[index])


def headline(
    run: Run,
    facts: Mapping[str, Any],
    curves: Curves,
    metric: str,
    best: tuple[int, float, float] | None,
    interval: Interval | None = None,
) -> list[Card]:
    """Best metric, losses, throughput, time, steps: those that are known."""
    cards, shared = [], shared_with_train(facts.get("facts", {}))
    if best is not None:
        step, epoch, value = best
        known = f" · 95 % interval {format_figure(interval.low)} to {format_figure(interval.high)}" if interval else ""
        note = f"after epoch {format_figure(epoch)}, step {step:,}{known}"
        cards.append(
            Card(f"best {metric}", format_figure(value), " · ".join(filter(None, [note, shared.get("validation")])))
        )
    for split in ("train", "validation", "test"):
        loss = curves.get((split, "loss"))
        if loss is None or (split == "validation" and metric == "loss" and len(loss) < 2):
            continue
        first, last = _ends(loss)
        change = f"{first:.3g} → {last:.3g}" if len(loss) > 1 else format_figure(last)
        notes = ["first to last" if len(loss) > 1 else "", shared.get(split, "")]
        cards.append(Card(f"{split} loss", change, " · ".join(filter(None, notes))))
    rate = curves.get(("train", "units_per_second"))
    if rate is not None:
        unit = facts.get("facts", {}).get("unit", "unit")
        cards.append(
            Card("throughput", format_count(float(np.median(rate.values))), f"{unit}s per second, all ranks (median)")
        )
    seconds = duration(facts, curves)
    if seconds is not None:
        sessions = len(facts.get("sessions", []))
        cards.append(Card("time", format_seconds(seconds), f"in {sessions} sessions" if sessions > 1 else ""))
    total, done = facts.get("facts", {}).get("total_steps"), steps_done(run, facts, curves)
    if done and total:
        cards.append(Card("steps", f"{done:,}", f"of {total:,} ({done / total:.0%})"))
    return cards


def steps_done(run: Run, facts: Mapping[str, Any], curves: Curves) -> int:
    """Optimizer steps done: not every step is a row, so the session and the latest checkpoint may know of later ones."""
    rows = curves.get(("train", "loss"))
    session = (facts.get("sessions") or [{}])[-1]
    known = (session.get("step"), session.get("start_step"), step_of(labeled_name(run.checkpoints / "latest")))
    return max([int(rows.steps[-1]) if rows is not None else 0, *(step for step in known if step is not None)])


def duration(facts: Mapping[str, Any], curves: Curves) -> float | None:
    """Seconds of training over all sessions; a session that did not end properly counts as the time of its steps."""
    total = 0.0
    for session in facts.get("sessions", []):
        if session.get("ended") and session.get("started"):
            total += session["ended"] - session["started"]
    open_sessions = [session for session in facts.get("sessions", []) if not session.get("ended")]
    taken = curves.get(("train", "step_seconds"))
    if open_sessions and taken is not None:
        since = open_sessions[-1].get("start_step", 0)
        steps = taken.steps[-1] - since
        total += float(np.mean(taken.values[taken.steps > since]) * steps) if steps > 0 else 0.0
    return total or None


def step_of(name: str) -> int | None:
    """step-00000075 -> 75."""
    number = name.removeprefix("step-")
    return int(number) if number.isdecimal() and len(number) < 16 else None


def subtitle(facts: Mapping[str, Any]) -> list[str]:
    details = facts.get("facts", {})
    ranks = details.get("ranks")
    model, size = details.get("model"), details.get("parameters")
    parts = [
        str(facts.get("task", "")).replace("_", " "),
        (f"{model}" + (f" ({format_count(size)} parameters)" if size else "")) if model else "",
        f"{format_number(ranks, 'rank')} on {details.get('device', 'cpu')}" if ranks else "",
        " · ".join(str(details[key]) for key in ("deepspeed", "precision") if details.get(key)),
        str(facts.get("created", "")).replace("T", " ").replace("+00:00", " UTC"),
    ]
    return [part for part in parts if part]


def _ends(series: Series) -> tuple[float, float]:
    """First and last value; for long series the mean of 2 % at each end, because single steps are noisy."""
    reach = max(1, len(series) // 50)
    return float(series.values[:reach].mean()), float(series.values[-reach:].mean())


def mode_of(run: Run, metric: str) -> Literal["min", "max"]:
    """Whether the smallest ("min") or the largest ("max") is best: as the recipe says, or the metric's own direction."""
    mode = _evaluation_key(run, "best_mode")
    if mode in ("min", "max"):
        return "min" if mode == "min" else "max"
    try:
        return direction(metric)
    except UserError:  # a metric that this version does not know
        return "max"
