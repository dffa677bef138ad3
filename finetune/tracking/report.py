"""report.html: one file that summarizes a run, made from the run folder alone, while it trains or afterwards."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from finetune.errors import UserError
from finetune.metrics import direction
from finetune.recipe.secrets import mask
from finetune.recipe.yaml import read_document
from finetune.tasks import CARDS
from finetune.tracking.atomic_files import publish_text
from finetune.tracking.console import figure
from finetune.tracking.journal import read_rows
from finetune.tracking.report_charts import Curves, draw_charts
from finetune.tracking.report_tables import (
    choose_tables,
    clip,
    confusion_cells,
    drop_class_numbers,
    pair_samples,
    shorten,
)
from finetune.tracking.retention import labeled_name, stored_checkpoints
from finetune.tracking.run import Run
from finetune.tracking.series import Series, collect_series
from finetune.units import format_bytes, format_count, format_number, format_seconds

_OWN_SECTION = ("confusion_matrix", "per_class", "samples", "worst_examples")


@dataclass(frozen=True)
class Card:
    """One headline figure."""

    label: str
    value: str
    note: str = ""


def write_report(run_dir: Path) -> Path:
    """Write <run_dir>/report.html and return its path. The run may be unfinished, or have no evaluations.

    The page needs no network and has no script. Raises: UserError if run_dir is no run folder; FinetuneError if the
    file cannot be written.
    """
    run = Run.open(run_dir)
    facts = run.read()
    curves = collect_series(read_rows(run.metrics_file))
    metric = metric_of(run, facts)
    best = best_evaluation(run, facts, curves, metric)
    best_step = None if best is None else best[0]
    tables = choose_tables(run, best_step)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            name=facts.get("name", run.name),
            id=run.id,
            status=_status(run, facts),
            subtitle=_subtitle(facts),
            cards=headline(run, facts, curves, metric, best),
            charts=draw_charts(curves, facts),
            confusion=confusion_cells(tables.get("confusion_matrix")),
            per_class=clip(tables.get("per_class")),
            samples=pair_samples(run),
            best_step=best_step,
            worst=clip(drop_class_numbers(tables.get("worst_examples"))),
            other={name: clip(table) for name, table in tables.items() if name not in _OWN_SECTION},
            checkpoints=list_checkpoints(run),
            machine=_machine(facts),
            versions=facts.get("versions", {}),
            facts=_flat(facts.get("facts", {})),
            recipe=mask(run.recipe_file.read_text(encoding="utf-8")) if run.recipe_file.is_file() else "",
            wandb=facts.get("wandb", {}),
            figure=figure,
        )
    )
    publish_text(run.report_file, page)
    return run.report_file


def metric_of(run: Run, facts: Mapping[str, Any]) -> str:
    """The metric that selects the best checkpoint: from the summary, the recipe, or the task."""
    named = facts.get("summary", {}).get("best_metric") or _evaluation_key(run, "best")
    card = CARDS.get(str(facts.get("task")))
    return str(named or (card.best if card else "loss"))


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
    if series is None:
        return None
    steps = series.steps.astype(int).tolist()
    labeled = _step_of(labeled_name(run.checkpoints / "best"))
    known = [step for step in (facts.get("summary", {}).get("best_step"), labeled) if step in steps]
    if known:
        index = steps.index(known[0])
    else:
        index = int(series.values.argmin() if _mode(run, metric) == "min" else series.values.argmax())
    return steps[index], float(series.epochs[index]), float(series.values[index])


def headline(
    run: Run, facts: Mapping[str, Any], curves: Curves, metric: str, best: tuple[int, float, float] | None
) -> list[Card]:
    """Best metric, losses, throughput, time, steps: those that are known."""
    cards = []
    if best is not None:
        step, epoch, value = best
        cards.append(Card(f"best {metric}", figure(value), f"after epoch {figure(epoch)}, step {step:,}"))
    for split in ("train", "validation", "test"):
        loss = curves.get((split, "loss"))
        if loss is None or (split == "validation" and metric == "loss" and len(loss) < 2):
            continue
        first, last = _ends(loss)
        change = f"{first:.3g} → {last:.3g}" if len(loss) > 1 else figure(last)
        cards.append(Card(f"{split} loss", change, "first to last" if len(loss) > 1 else ""))
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
    known = (session.get("step"), session.get("start_step"), _step_of(labeled_name(run.checkpoints / "latest")))
    return max([int(rows.steps[-1]) if rows is not None else 0, *(step for step in known if step is not None)])


def duration(facts: Mapping[str, Any], curves: Curves) -> float | None:
    """Seconds of training over all sessions; a session that did not end properly counts as the time of its steps."""
    total = 0.0
    for session in facts.get("sessions", []):
        if session.get("ended"):
            total += session["ended"] - session["started"]
    open_sessions = [session for session in facts.get("sessions", []) if not session.get("ended")]
    taken = curves.get(("train", "step_seconds"))
    if open_sessions and taken is not None:
        since = open_sessions[-1].get("start_step", 0)
        steps = taken.steps[-1] - since
        total += float(np.mean(taken.values[taken.steps > since]) * steps) if steps > 0 else 0.0
    return total or None


def list_checkpoints(run: Run) -> list[dict[str, str]]:
    """Complete checkpoints by step: name, size, and whether it is the latest or the best."""
    return [
        {"name": one.path.name, "size": format_bytes(one.num_bytes), "marks": ", ".join(one.labels)}
        for one in stored_checkpoints(run)
        if one.complete
    ]


def _step_of(name: str) -> int | None:
    """step-00000075 -> 75."""
    number = name.removeprefix("step-")
    return int(number) if number.isdigit() else None


def _subtitle(facts: Mapping[str, Any]) -> list[str]:
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


def _machine(facts: Mapping[str, Any]) -> dict[str, str]:
    machine = dict(facts.get("machine", {}))
    if "memory_bytes" in machine:
        machine["memory"] = format_bytes(machine.pop("memory_bytes"))
    gpus = machine.pop("gpus", None) or []
    machine["GPUs"] = ", ".join(f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)) or "none"
    return {key: str(value) for key, value in machine.items()}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"examples": {"train": 5}} -> {"examples.train": "5"}."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        if key == "versions":
            continue
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        elif isinstance(item, int) and not isinstance(item, bool):
            flat[f"{prefix}{key}"] = f"{item:,}"
        else:
            flat[f"{prefix}{key}"] = shorten(item)
    return flat


def _ends(series: Series) -> tuple[float, float]:
    """First and last value; for long series the mean of 2 % at each end, because single steps are noisy."""
    reach = max(1, len(series) // 50)
    return float(series.values[:reach].mean()), float(series.values[-reach:].mean())


def _mode(run: Run, metric: str) -> str:
    """Whether the smallest ("min") or the largest ("max") is best: as the recipe says, or the metric's own direction."""
    mode = _evaluation_key(run, "best_mode")
    if mode in ("min", "max"):
        return mode
    try:
        return direction(metric)
    except UserError:  # a metric that this version does not know
        return "max"


def _status(run: Run, facts: Mapping[str, Any]) -> str:
    """The status in run.json; "interrupted" if that is "running" but the training process on this host is gone."""
    status = str(facts.get("status", "failed"))
    here = (facts.get("process") or {}).get("host") == platform.node()
    return "interrupted" if status == "running" and here and run.trainer is None else status


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
