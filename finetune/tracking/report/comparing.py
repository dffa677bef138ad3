"""A comparison of runs as one HTML file, in the looks of the report."""

from __future__ import annotations

from pathlib import Path

import jinja2

from finetune.tracking.atomic_files import publish_text
from finetune.tracking.comparison import Compared
from finetune.tracking.console import figure
from finetune.tracking.journal import read_rows
from finetune.tracking.report.charts import Drawing, Line, draw_chart
from finetune.tracking.report.page import environment, script
from finetune.tracking.run import Run
from finetune.tracking.series import collect_series

MAX_LINES = 6  # runs in one chart


def write_comparison(compared: Compared, path: Path) -> Path:
    """Write the page to `path` and return it. Raises: FinetuneError if it cannot be written."""
    template: jinja2.Template = environment().get_template("comparison.html.j2")
    code, digest = script()
    page = template.render(compared=compared, charts=_charts(compared), figure=figure, script=code, script_hash=digest)
    publish_text(path, page)
    return path


def _charts(compared: Compared) -> list[tuple[str, Drawing]]:
    """The validation loss and the metric of the first run, a line for each run."""
    runs = compared.runs[:MAX_LINES]
    curves = [collect_series(read_rows(Run(run.path).metrics_file)) for run in runs]
    charts = []
    for name in dict.fromkeys(["loss", runs[0].metric]):
        lines = [
            Line(f"{run.name} {run.path.name}", one["validation", name], points=True, by_epoch=True)
            for run, one in zip(runs, curves, strict=True)
            if ("validation", name) in one
        ]
        drawing = draw_chart(f"validation {name}", lines)
        if drawing:
            charts.append((f"Validation {name} by epoch", drawing))
    return charts
