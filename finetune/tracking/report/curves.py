"""The charts of a report: loss, metrics by epoch, learning rate, gradient norm, throughput, step time, memory; calibration
and threshold curves of the best checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finetune.tasks import CARDS
from finetune.tracking.judgement.calibration import Calibration
from finetune.tracking.judgement.thresholds import Curve
from finetune.tracking.report.charts import Drawing, Line, draw_chart
from finetune.tracking.report.judging import Judgement
from finetune.tracking.series import Series

Curves = dict[tuple[str, str], Series]

TIME_SHARES = {
    "compute_seconds": "compute",
    "communication_seconds": "communication",
    "slowest_seconds": "waiting for the slowest rank",
    "data_seconds": "waiting for data",
    "host_seconds": "GPU waiting for the CPU",
}
MAX_METRICS = 6  # in one chart: as many as there are colors
MAX_RANKS = 6  # whose memory is drawn
SQUARE = (3.4, 3.1)  # inches


@dataclass(frozen=True)
class Chart:
    """One plot."""

    title: str
    drawing: Drawing
    note: str = ""


def draw_charts(curves: Curves, facts: Mapping[str, Any]) -> list[Chart]:
    """Those charts of the training that have values."""
    unit = facts.get("facts", {}).get("unit", "unit")
    losses = [
        Line(split, curves[split, "loss"], points=split != "train")
        for split in ("train", "validation")
        if (split, "loss") in curves
    ]
    note = f"mean per {unit}, at each logged step"
    card = CARDS.get(str(facts.get("task")))
    if len(losses) == 2 and card is not None and card.loss.note:
        note = f"{note}; {card.loss.note}"
    charts = [Chart("Loss", draw_chart("Loss", losses), note), *_metric_charts(curves)]
    for key, title, note in (
        ("learning_rate", "Learning rate", ""),
        ("grad_norm", "Gradient norm", "before clipping"),
        ("units_per_second", "Throughput", f"{unit}s per second, all ranks"),
    ):
        if ("train", key) in curves:
            line = Line(title.lower(), curves["train", key], exact=key == "learning_rate")
            charts.append(Chart(title, draw_chart(title, [line], zero=key != "grad_norm"), note))
    return [chart for chart in [*charts, _time_chart(curves), _memory_chart(curves)] if chart.drawing]


def draw_scores(judgement: Judgement) -> list[Chart]:
    """Calibration, ROC and precision-recall curves, where there are scores."""
    charts = [] if judgement.calibration is None else [_calibration_chart(judgement.calibration)]
    diagonal = _line(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    if judgement.roc:
        lines = [Line("chance", diagonal, plain=True), *_threshold_lines(judgement.roc, "area")]
        drawing = draw_chart("ROC", lines, share=True, across="false positive rate", size=SQUARE)
        charts.append(Chart("ROC curve", drawing, "true positive rate at each threshold"))
    if judgement.precision:
        lines = _threshold_lines(judgement.precision, "average precision")
        drawing = draw_chart("Precision and recall", lines, zero=True, across="recall", size=SQUARE)
        charts.append(Chart("Precision and recall", drawing, "precision at each threshold"))
    return charts


def _calibration_chart(found: Calibration) -> Chart:
    lines = [
        Line("perfect", _line(np.array([0.0, 1.0]), np.array([0.0, 1.0])), plain=True),
        Line("accuracy", _line(found.confidence, found.accuracy), points=True),
    ]
    drawing = draw_chart("Calibration", lines, share=True, across="confidence", size=SQUARE)
    return Chart(
        "Calibration", drawing, f"how often answers of each confidence are right; expected error {found.error:.3f}"
    )


def _threshold_lines(curves: Sequence[Curve], area: str) -> list[Line]:
    return [
        Line(f"{curve.label} ({area} {curve.area:.3f})", _line(curve.across, curve.up), exact=True) for curve in curves
    ]


def _line(across: np.ndarray, up: np.ndarray) -> Series:
    return Series(across, across, up)


def _memory_chart(curves: Curves) -> Chart:
    """Of rank 0, and of others where they are recorded: each of a few ranks, or the largest and the smallest. A run that was
    resumed on one rank has the others for a part of its steps.
    """
    own = {"memory_bytes": "rank 0"}
    others = {f"memory_bytes_rank_{rank}": f"rank {rank}" for rank in range(1, MAX_RANKS)}
    ends = {"memory_bytes_max": "largest of all ranks", "memory_bytes_min": "smallest of all ranks"}
    recorded = [names for names in (others, ends) if any(("train", key) in curves for key in names)]
    chosen = own if not recorded else {**own, **others} if recorded[0] is others else ends
    lines = [
        Line(label, replace(series, values=series.values / 2**30), exact=True)
        for key, label in chosen.items()
        if (series := curves.get(("train", key))) is not None
    ]
    note = "GiB on rank 0" if chosen is own else "GiB"
    return Chart("Memory", draw_chart("Memory", lines, zero=True), note)


def _time_chart(curves: Curves) -> Chart:
    """How the time of a step is divided; empty where only the total was logged."""
    whole, lines = curves.get(("train", "step_seconds")), []
    if whole is not None and ("train", "compute_seconds") in curves:
        for key, label in TIME_SHARES.items():
            if (series := curves.get(("train", key))) is not None:
                _, own, others = np.intersect1d(series.steps, whole.steps, return_indices=True)
                shares = series.values[own] / np.maximum(whole.values[others], 1e-9)
                lines.append(Line(label, Series(series.steps[own], series.epochs[own], shares), exact=True))
    title = "Step time breakdown"
    return Chart(title, draw_chart(title, lines, zero=True), "fraction of the step time, mean over ranks")


def _metric_charts(curves: Curves) -> list[Chart]:
    """Metrics between -1 and 1 share one chart; any other metric gets a chart with its own scale."""
    metrics = {key: series for (split, key), series in curves.items() if split == "validation" and key != "loss"}
    shares = {key: series for key, series in metrics.items() if np.abs(series.values).max() <= 1}
    charts = []
    if shares:
        lines = [Line(key, series, points=True, by_epoch=True) for key, series in shares.items()]
        parts = [lines[start : start + MAX_METRICS] for start in range(0, len(lines), MAX_METRICS)]
        for number, part in enumerate(parts, 1):
            note = "validation" + (f", {number} of {len(parts)}" if len(parts) > 1 else "")
            charts.append(Chart("Metrics by epoch", draw_chart("Metrics by epoch", part, share=True), note))
    for key, series in metrics.items():
        if key not in shares:
            line = Line(key, series, points=True, by_epoch=True)
            charts.append(Chart(f"{key.capitalize()} by epoch", draw_chart(key, [line]), "validation"))
    return charts
