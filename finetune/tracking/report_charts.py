"""The charts of a report: loss, metrics by epoch, learning rate, gradient norm, throughput, step time, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finetune.tracking.charts import Line, draw_chart
from finetune.tracking.series import Series

Curves = dict[tuple[str, str], Series]

TIME_SHARES = {
    "compute_seconds": "compute",
    "communication_seconds": "communication",
    "slowest_seconds": "waiting for the slowest rank",
    "data_seconds": "waiting for data",
    "host_seconds": "GPU waiting for the CPU",
}


@dataclass(frozen=True)
class Chart:
    """One plot. svg: markup generated here; everything else on the page is escaped."""

    title: str
    svg: str
    note: str = ""


def draw_charts(curves: Curves, facts: Mapping[str, Any]) -> list[Chart]:
    """Those charts that have values."""
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
            f"mean per {unit}, at each logged step",
        )
    ]
    charts += _metric_charts(curves)
    for key, title, note in (
        ("learning_rate", "Learning rate", ""),
        ("grad_norm", "Gradient norm", "before clipping"),
        ("units_per_second", "Throughput", f"{unit}s per second, all ranks"),
    ):
        if ("train", key) in curves:
            line = Line(title.lower(), curves["train", key], exact=key == "learning_rate")
            charts.append(Chart(title, draw_chart(title, [line], zero=key != "grad_norm"), note))
    charts = [chart for chart in [*charts, _time_chart(curves), _memory_chart(curves)] if chart.svg]
    return (
        charts[:-1] if len(charts) % 2 and charts[-1].title == "Memory" else charts
    )  # an even number fills two columns


def _memory_chart(curves: Curves) -> Chart:
    series = curves.get(("train", "memory_bytes"))
    lines = [Line("memory", replace(series, values=series.values / 2**30), exact=True)] if series is not None else []
    return Chart("Memory", draw_chart("Memory", lines, zero=True), "GiB on rank 0")


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
        lines = [Line(key, series, points=True, by_epoch=True) for key, series in list(shares.items())[:6]]
        charts.append(Chart("Metrics by epoch", draw_chart("Metrics by epoch", lines), "validation"))
    for key, series in metrics.items():
        if key not in shares:
            line = Line(key, series, points=True, by_epoch=True)
            charts.append(Chart(f"{key.capitalize()} by epoch", draw_chart(key, [line]), "validation"))
    return charts
