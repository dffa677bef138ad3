"""What W&B gets of single examples: a sample of each evaluation's predictions, and at the end how each example fared,
its answers before and after training side by side, and the threshold curves of the best evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.tracking.class_names import class_names
from finetune.tracking.example_history import history_tables, left_out, prediction_files
from finetune.tracking.journal import list_tables, read_table
from finetune.tracking.judgement.predictions import read_predictions
from finetune.tracking.judgement.thresholds import Curve, threshold_curves
from finetune.tracking.run import Run

MAX_CURVE_BYTES = 256 << 20  # of a prediction file whose curves are drawn
SCORES = ("scores", "prediction", "reference")


@dataclass(frozen=True)
class Chart:
    """One of W&B's own charts over a table. area: what the number in its legend is."""

    fields: dict[str, str]
    strings: dict[str, str]
    area: str
    spec: str = "wandb/area-under-curve/v0"

    @classmethod
    def of(cls, title: str, across: str, up: str, area: str) -> Chart:
        strings = {"title": title, "x-axis-title": across, "y-axis-title": up}
        return cls({"x": across, "y": up, "class": "class"}, strings, area)


CHARTS = {
    "roc": Chart.of("ROC", "false positive rate", "true positive rate", "area"),
    "pr": Chart.of("Precision and recall", "recall", "precision", "average precision"),
}

NamedTable = tuple[str, list[str], list[list[Any]]]


def tables_at_end(run: Run) -> Iterator[NamedTable]:
    """(name, columns, rows): `examples`, `examples_per_class` and `before_after`, as far as there is something to show."""
    for name, (columns, rows) in history_tables(run).items():
        yield name, columns, rows
    if (pairs := before_after(run)) is not None:
        yield "before_after", *pairs


def before_after(run: Run) -> tuple[list[str], list[list[Any]]] | None:
    """One row per sample: what it is (id, input or replies, expected), and the answers of the model before and after training.
    None without both.
    """
    said: dict[str, dict[str, Any]] = {}
    names: dict[str, None] = {}
    for path in (path for path, name, _ in list_tables(run.tables) if name == "samples"):
        try:
            columns, rows = read_table(path)
        except (OSError, ValueError):
            continue
        names |= dict.fromkeys(name for name in columns if name not in ("when", "predicted", "picture"))
        for row in rows:
            cells = dict(zip(columns, row, strict=False))
            one = said.setdefault(str(cells.get("id", "")), {})
            one.update({key: cells[key] for key in names if key in cells})
            one[str(cells.get("when", "after"))] = cells.get("predicted", "")
    both = [one for one in said.values() if {"before", "after"} <= one.keys()]
    columns = [*names, "before", "after"]
    return (columns, [[one.get(key, "") for key in columns] for one in both]) if both else None


def curves_at(run: Run, step: int) -> tuple[list[Curve], list[Curve]]:
    """(ROC, precision and recall) of the validation split after `step`; [] for tasks without scores."""
    path = run.predictions / f"validation-step-{step:08d}.jsonl"
    found = read_predictions(path, SCORES, class_names(run), max_bytes=MAX_CURVE_BYTES)
    return threshold_curves(found) if found is not None else ([], [])


def draw_curves(wandb: Any, kind: str, curves: Sequence[Curve]) -> Any:
    """A chart of W&B with one line per class. kind: a key of CHARTS."""
    chart = CHARTS[kind]
    rows = [
        [f"{one.label} ({chart.area} {one.area:.3f})", float(x), float(y)]
        for one in curves
        for x, y in zip(one.across, one.up, strict=True)
    ]
    table = wandb.Table(columns=[chart.fields["class"], chart.fields["x"], chart.fields["y"]], data=rows)
    return wandb.plot_table(
        data_table=table, vega_spec_name=chart.spec, fields=chart.fields, string_fields=chart.strings
    )


def logged_of_examples(run: Run) -> tuple[list[str], list[str]]:
    """(tables, charts) that the mirror of a run makes of its predictions and samples, read from the heads of the files."""
    files = [file for file, _ in prediction_files(run.predictions)]
    first = _first_line(files[-1]) if files else {}
    tables = ["predictions"] if first else []
    if len(files) > 1 and not left_out(run):
        single = isinstance(first.get("reference"), int) and not isinstance(first.get("reference"), bool)
        tables += ["examples", *(["examples_per_class"] if single else [])]
    tables += ["before_after"] if before_after(run) is not None else []
    scores = first.get("scores")
    drawn = isinstance(scores, list) and scores and isinstance(scores[0], (int, float)) and "reference" in first
    return tables, list(CHARTS) if drawn else []


def _first_line(file: Path) -> dict[str, Any]:
    try:
        with file.open(encoding="utf-8") as lines:
            row = json.loads(lines.readline() or "{}")
    except (OSError, ValueError):
        return {}
    return row if isinstance(row, dict) else {}
