"""report.html: one file that shows a run at a glance, made from the run folder alone, at any time of the run."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from finetune.tracking.charts import Line, draw_chart
from finetune.tracking.console import figure
from finetune.tracking.journal import list_tables, read_rows, read_table
from finetune.tracking.run import Run
from finetune.tracking.series import Series, collect_series
from finetune.units import format_bytes, format_count, format_seconds

MAX_TABLE_ROWS = 100
MAX_CELL = 600  # characters of a text shown; predictions/ holds it whole
MAX_HEAT = 64  # classes drawn as a heat map

Curves = dict[tuple[str, str], Series]
TableRows = tuple[list[str], list[list[Any]]]


@dataclass(frozen=True)
class Card:
    """One headline figure."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """One plot; svg is markup of our own making, all else on the page is escaped."""

    title: str
    svg: str
    note: str = ""


def write_report(run_dir: Path) -> Path:
    """Write <run_dir>/report.html and return its path. Works on a run half done, and on one without evaluations.

    No network, no script. Raises: UserError if run_dir is no run folder; FinetuneError if it cannot be written.
    """
    run = Run.open(run_dir)
    facts = run.read()
    curves = collect_series(read_rows(run.metrics_file))
    tables = newest_tables(run)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            name=facts.get("name", run.name),
            id=run.id,
            status=_status(run, facts),
            subtitle=_subtitle(facts),
            cards=headline(facts, curves, metric_of(run, facts)),
            charts=draw_charts(curves, facts),
            confusion=_confusion(tables.get("confusion_matrix")),
            per_class=_clip(tables.get("per_class")),
            samples=pair_samples(run),
            worst=_clip(_drop_ids(tables.get("worst_examples"))),
            other={name: _clip(table) for name, table in tables.items() if name not in _OWN_PLACE},
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


_OWN_PLACE = ("confusion_matrix", "per_class", "samples", "worst_examples")


def newest_tables(run: Run) -> dict[str, TableRows]:
    """The latest table of each name; a damaged file is passed over."""
    found: dict[str, TableRows] = {}
    for path, name, _ in list_tables(run.tables):
        try:
            found[name] = read_table(path)
        except (OSError, ValueError):
            continue
    return found


def metric_of(run: Run, facts: Mapping[str, Any]) -> str:
    """The metric that chooses the best checkpoint: from the summary, the recipe, or the loss."""
    named = facts.get("summary", {}).get("best_metric")
    if not named:
        try:
            named = read_document(run.recipe_file).values["evaluation"]["best"]
        except (UserError, KeyError, TypeError):
            named = None  # a damaged recipe.yaml must not hide the curves
    card = CARDS.get(str(facts.get("task")))
    return str(named or (card.best if card else "loss"))


def headline(facts: Mapping[str, Any], curves: Curves, metric: str) -> list[Card]:
    """Best metric, losses, throughput, time, steps: those that there are."""
    cards = []
    best = curves.get(("validation", metric))
    if best is not None:
        index = int(best.values.argmin() if _direction(metric) == "min" else best.values.argmax())
        where = f"after epoch {figure(float(best.epochs[index]))}, step {int(best.steps[index]):,}"
        cards.append(Card(f"best {metric}", figure(float(best.values[index])), where))
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
            Card("throughput", format_count(float(np.median(rate.values))), f"{unit}s a second, all ranks (median)")
        )
    seconds = duration(facts, curves)
    if seconds is not None:
        sessions = len(facts.get("sessions", []))
        cards.append(Card("time", format_seconds(seconds), f"in {sessions} sessions" if sessions > 1 else ""))
    steps = curves.get(("train", "loss"))
    total = facts.get("facts", {}).get("total_steps")
    if steps is not None and total:
        done = int(steps.steps[-1])
        cards.append(Card("steps", f"{done:,}", "all done" if done >= total else f"of {total:,} ({done / total:.0%})"))
    return cards


def duration(facts: Mapping[str, Any], curves: Curves) -> float | None:
    """Seconds of training over all sessions; a session without an end counts up to what its steps took."""
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


def draw_charts(curves: Curves, facts: Mapping[str, Any]) -> list[Chart]:
    """Loss, metrics by epoch, learning rate, gradient norm, throughput, memory: those that have values."""
    unit = facts.get("facts", {}).get("unit", "unit")
    charts = [
        Chart(
            "Loss",
            draw_chart(
                "Loss",
                [
                    Line(split, curves[split, "loss"], points=split != "train")
                    for split in ("train", "validation")
                    if (split, "loss") in curves
                ],
            ),
            f"sum over {unit}s / number of {unit}s, at each step",
        )
    ]
    charts += _metric_charts(curves)
    for key, title, note in (
        ("learning_rate", "Learning rate", ""),
        ("grad_norm", "Gradient norm", "before clipping"),
        ("units_per_second", "Throughput", f"{unit}s a second over all ranks"),
    ):
        if ("train", key) in curves:
            line = Line(title.lower(), curves["train", key], exact=key == "learning_rate")
            charts.append(Chart(title, draw_chart(title, [line], zero=key != "grad_norm"), note))
    charts = [chart for chart in [*charts, _time_chart(curves), _memory_chart(curves)] if chart.svg]
    return charts[:-1] if len(charts) % 2 and charts[-1].title == "Memory" else charts  # no hole in two columns


def _memory_chart(curves: Curves) -> Chart:
    found = curves.get(("train", "memory_bytes"))
    lines = [Line("memory", replace(found, values=found.values / 2**30), exact=True)] if found is not None else []
    return Chart("Memory", draw_chart("Memory", lines, zero=True), "GiB on rank 0")


TIME_SHARES = {
    "compute_seconds": "computing",
    "communication_seconds": "communicating",
    "slowest_seconds": "waiting for the slowest rank",
    "data_seconds": "waiting for data",
    "host_seconds": "GPU waiting for its host",
}


def _time_chart(curves: Curves) -> Chart:
    """Shares of a step's seconds; nothing where a run told only the whole of it."""
    whole, lines = curves.get(("train", "step_seconds")), []
    if whole is not None and ("train", "compute_seconds") in curves:
        for key, label in TIME_SHARES.items():
            if (series := curves.get(("train", key))) is not None:
                _, own, others = np.intersect1d(series.steps, whole.steps, return_indices=True)
                shares = series.values[own] / np.maximum(whole.values[others], 1e-9)
                lines.append(Line(label, Series(series.steps[own], series.epochs[own], shares), exact=True))
    title = "Where a step's time goes"
    return Chart(title, draw_chart(title, lines, zero=True), "shares, mean over ranks")


def _metric_charts(curves: Curves) -> list[Chart]:
    """Shares (between -1 and 1) in one chart; any other metric in its own, for its scale is its own."""
    found = {key: series for (split, key), series in curves.items() if split == "validation" and key != "loss"}
    shares = {key: series for key, series in found.items() if np.abs(series.values).max() <= 1}
    charts = []
    if shares:
        lines = [Line(key, series, points=True, by_epoch=True) for key, series in list(shares.items())[:6]]
        charts.append(Chart("Metrics by epoch", draw_chart("Metrics by epoch", lines), "validation"))
    for key, series in found.items():
        if key not in shares:
            line = Line(key, series, points=True, by_epoch=True)
            charts.append(Chart(f"{key.capitalize()} by epoch", draw_chart(key, [line]), "validation"))
    return charts


def pair_samples(run: Run) -> list[dict[str, str]]:
    """Each sample once: its input, what was expected, what the model said before and after training."""
    pairs: dict[str, dict[str, str]] = {}
    files = [path for path, name, _ in list_tables(run.tables) if name == "samples"]
    for path in files:
        try:
            columns, rows = read_table(path)
        except (OSError, ValueError):
            continue
        for row in rows:
            cells = dict(zip(columns, row, strict=False))
            pair = pairs.setdefault(str(cells.get("id", len(pairs))), {})
            when = str(cells.get("when") or ("before" if path == files[0] and len(files) > 1 else "after"))
            pair.update({key: _short(cells[key]) for key in ("input", "expected") if key in cells})
            pair[when] = _short(cells.get("predicted", ""))
    return list(pairs.values())


def list_checkpoints(run: Run) -> list[dict[str, str]]:
    """Published checkpoints by step: name, size, whether it is the latest or the best."""
    names = {label: _named(run.checkpoints / label) for label in ("latest", "best")}
    found = []
    for path in sorted(run.checkpoints.glob("step-*")):
        if (path / "manifest.json").is_file():
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            marks = [label for label, name in names.items() if name == path.name]
            found.append({"name": path.name, "size": format_bytes(size), "marks": ", ".join(marks)})
    return found


def _named(label: Path) -> str:
    if label.is_symlink():
        return label.readlink().name
    return label.read_text(encoding="utf-8").strip() if label.is_file() else ""


def _confusion(table: TableRows | None) -> dict[str, Any] | None:
    """A heat map's cells, shaded by their share of the row (the class), or a plain table for other forms."""
    if table is None or not table[1]:
        return None
    columns, rows = table
    if columns[0] != "reference" or len(columns) != len(rows) + 1 or len(rows) > MAX_HEAT:
        return {**(_clip(table) or {}), "heat": False}
    shaded = []
    for index, (name, *counts) in enumerate(rows):
        total = sum(counts)
        cells = [
            {"count": n, "share": n / total if total else 0.0, "right": index == at} for at, n in enumerate(counts)
        ]
        shaded.append({"name": name, "cells": cells, "total": total})
    return {"columns": columns[1:], "rows": shaded, "heat": True, "small": len(rows) > 16}


def _drop_ids(table: TableRows | None) -> TableRows | None:
    """Class numbers say nothing where the names stand beside them."""
    if table is None or not {"label", "predicted"} <= set(table[0]):
        return table
    keep = [index for index, name in enumerate(table[0]) if name not in ("prediction", "reference")]
    return [table[0][index] for index in keep], [[row[index] for index in keep] for row in table[1]]


def _clip(table: TableRows | None) -> dict[str, Any] | None:
    """The first rows, with long texts cut."""
    if table is None or not table[1]:
        return None
    columns, rows = table
    cells = [
        [_short(cell) if isinstance(cell, (str, list, dict)) else cell for cell in row] for row in rows[:MAX_TABLE_ROWS]
    ]
    return {"columns": columns, "rows": cells, "more": max(0, len(rows) - MAX_TABLE_ROWS)}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_CELL else text[:MAX_CELL] + " …"


def _subtitle(facts: Mapping[str, Any]) -> list[str]:
    told = facts.get("facts", {})
    ranks = told.get("ranks")
    model, size = told.get("model"), told.get("parameters")
    parts = [
        str(facts.get("task", "")).replace("_", " "),
        (f"{model}" + (f" ({format_count(size)} parameters)" if size else "")) if model else "",
        f"{ranks} rank{'s' if ranks != 1 else ''} on {told.get('device', 'cpu')}" if ranks else "",
        " · ".join(str(told[key]) for key in ("deepspeed", "precision") if told.get(key)),
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
    found: dict[str, str] = {}
    for key, item in value.items():
        if key == "versions":
            continue
        if isinstance(item, Mapping):
            found |= _flat(item, f"{prefix}{key}.")
        elif isinstance(item, int) and not isinstance(item, bool):
            found[f"{prefix}{key}"] = f"{item:,}"
        else:
            found[f"{prefix}{key}"] = _short(item)
    return found


def _ends(series: Series) -> tuple[float, float]:
    """First and last value; of long series the mean of a fiftieth at each end, for single steps jump."""
    reach = max(1, len(series) // 50)
    return float(series.values[:reach].mean()), float(series.values[-reach:].mean())


def _direction(metric: str) -> str:
    try:
        return direction(metric)
    except UserError:  # a metric of a later version: the summary's word stands, the larger is shown
        return "max"


def _status(run: Run, facts: Mapping[str, Any]) -> str:
    """run.json's word, but "interrupted" where it says running and the process that trained on this host is gone."""
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
