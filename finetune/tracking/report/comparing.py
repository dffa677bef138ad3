"""A comparison of runs as one HTML file, in the looks of the report; and the report of a group of runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from finetune.terminal import printable
from finetune.tracking.atomic_files import publish_text
from finetune.tracking.comparison import Compared, compare_runs
from finetune.tracking.journal import read_rows
from finetune.tracking.report.charts import Drawing, Line, draw_chart
from finetune.tracking.report.headline import mode_of
from finetune.tracking.report.page import environment, script
from finetune.tracking.run import Run
from finetune.tracking.run_summary import RunSummary
from finetune.tracking.series import collect_series
from finetune.units import format_age, format_figure, format_number

MAX_LINES = 6  # runs in one chart
MAX_COMPARED = 12  # runs of a group whose recipes and figures stand side by side
MAX_LISTED = 200


@dataclass(frozen=True)
class Overview:
    """The head of the page. lead: a sentence. mark: its color. columns, rows: a table of the runs, whose first cell may be
    (text, address of the run's report). what: its title.
    """

    title: str
    lead: str = ""
    mark: str = "unknown"
    columns: tuple[str, ...] = ()
    rows: Sequence[Sequence[str | tuple[str, str]]] = field(default_factory=tuple)
    notes: tuple[str, ...] = ()
    what: str = "Runs"


def write_comparison(compared: Compared, path: Path, overview: Overview | None = None) -> Path:
    """Write the page to `path` and return it. Raises: FinetuneError if it cannot be written."""
    code, digest = script()
    page = (
        environment()
        .get_template("comparison.html.j2")
        .render(
            compared=compared,
            names=_names(compared.runs),
            overview=overview or _overview(compared.runs, path.parent),
            charts=_charts(compared),
            figure=format_figure,
            script=code,
            script_hash=digest,
        )
    )
    publish_text(path, printable(page))
    return path


def write_group(runs: Sequence[RunSummary], folder: Path) -> Path:
    """Write <folder>/report.html about the runs below it, the best first, and return its path.

    runs: two or more; those that cannot be read are counted in a note. Raises: FinetuneError if it cannot be written.
    """
    readable = [run for run in runs if run.status != "damaged"]
    order = _ranked(readable)
    notes = [] if len(readable) == len(runs) else [f"{format_number(len(runs) - len(readable), 'run')} cannot be read"]
    if len(order) > MAX_COMPARED:
        notes.append(f"the first {MAX_COMPARED} of {len(order)} runs are compared below")
    compared = compare_runs([run.path for run in order[:MAX_COMPARED]])
    listed = _overview(order[:MAX_LISTED], folder)
    if len(order) > MAX_LISTED:
        notes.append(f"the first {MAX_LISTED} of {len(order)} runs are listed")
    title = f"{folder.resolve().name}: {format_number(len(runs), 'run')}"
    overview = Overview(title, *_lead(order), listed.columns, listed.rows, tuple(notes))
    return write_comparison(compared, folder / "report.html", overview)


def _ranked(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """By task, metric and value, the best of each first; runs without a figure last."""

    def place(run: RunSummary) -> tuple[str, str, bool, float]:
        if run.value is None:
            return run.task, "", True, 0.0
        sign = 1 if mode_of(Run(run.path), run.metric) == "min" else -1
        return run.task, run.metric, False, sign * run.value

    measured = sorted((run for run in runs if run.value is not None), key=place)
    return [*measured, *(run for run in runs if run.value is None)]


def _lead(order: Sequence[RunSummary]) -> tuple[str, str]:
    """(a sentence on the best run, its mark)."""
    same = {(run.task, run.metric) for run in order if run.value is not None}
    first = order[0]
    if first.value is None:
        return "Nothing was evaluated yet.", "unknown"
    if len(same) > 1:
        return "The runs have different tasks or metrics: none of them is the best.", "unknown"
    ties = [name for name, run in zip(_names(order), order, strict=True) if run.value == first.value]
    names = f"{ties[0]}" if len(ties) == 1 else f"{', '.join(ties[:-1][:4])} and {ties[-1]}"
    return f"Best: {names}, {first.metric} {format_figure(first.value)}.", "good"


def _overview(runs: Sequence[RunSummary], folder: Path) -> Overview:
    rows: list[Sequence[str | tuple[str, str]]] = []
    for name, run in zip(_names(runs), runs, strict=True):
        report = Run(run.path).report_file
        shown = (name, quote(Path(os.path.relpath(report, folder)).as_posix())) if report.is_file() else name
        best = f"{run.metric} {format_figure(run.value)}" if run.value is not None else ""
        steps = f"{run.step:,} of {run.total:,}" if run.total else f"{run.step:,}"
        rows.append((shown, run.name, run.task.replace("_", " "), run.status, steps, best, format_age(run.age)))
    columns = ("run", "recipe", "task", "status", "steps", "best", "started")
    return Overview(f"{len(runs)} runs compared", columns=columns, rows=rows)


def _names(runs: Sequence[RunSummary]) -> list[str]:
    """The last part of each folder; the whole path where two have the same."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _charts(compared: Compared) -> list[tuple[str, Drawing]]:
    """The validation loss and the metric of the first run, a line for each run."""
    runs = compared.runs[:MAX_LINES]
    names = _names(compared.runs)[:MAX_LINES]
    curves = [collect_series(read_rows(Run(run.path).metrics_file)) for run in runs]
    charts = []
    for name in dict.fromkeys(["loss", runs[0].metric]):
        lines = [
            Line(run, one["validation", name], points=True, by_epoch=True)
            for run, one in zip(names, curves, strict=True)
            if ("validation", name) in one
        ]
        drawing = draw_chart(f"validation {name}", lines)
        if drawing:
            more = f" (first {MAX_LINES} runs)" if len(compared.runs) > MAX_LINES else ""
            charts.append((f"Validation {name} by epoch{more}", drawing))
    return charts
