"""What the predictions of a run's best checkpoint say of it: intervals, baselines, calibration, curves, the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune.tracking.class_names import class_names
from finetune.tracking.judgement.baselines import baseline
from finetune.tracking.judgement.calibration import Calibration, calibration
from finetune.tracking.judgement.intervals import Interval, intervals
from finetune.tracking.judgement.predictions import Predictions, prediction_fields, read_predictions
from finetune.tracking.judgement.thresholds import Curve, threshold_curves
from finetune.tracking.judgement.verdict import Evaluated, Verdict, judge
from finetune.tracking.run import Run
from finetune.tracking.series import Series

UNTUNED = "the model before training"
ERRORS = ("mse", "mae")  # which a model may have, whatever its correlation with the targets
Curves = Mapping[tuple[str, str], Series]


@dataclass(frozen=True)
class Row:
    """One metric of the best evaluation beside what it is compared with; None where that is not known."""

    metric: str
    value: float
    interval: Interval | None
    baselines: Mapping[str, float]


@dataclass(frozen=True)
class Judgement:
    """rows: the metrics. columns: names of the baselines. examples: how many predictions the intervals rest on."""

    verdict: Verdict
    rows: tuple[Row, ...] = ()
    columns: tuple[str, ...] = ()
    examples: int = 0
    calibration: Calibration | None = None
    roc: tuple[Curve, ...] = ()
    precision: tuple[Curve, ...] = field(default=())


def judge_run(
    run: Run, curves: Curves, metric: str, mode: Literal["min", "max"], best: tuple[int, float, float] | None
) -> Judgement:
    """best: (step, epoch, value) of the best evaluation, None without one. What cannot be read is left out."""
    losses = _trained(curves.get(("validation", "loss")))
    if best is None:
        has_rows = "validation" in (run.read().get("data") or {})
        return Judgement(judge(None, validation_loss=losses, metric=metric, has_validation=has_rows))
    step = best[0]
    figures = _figures_at(curves, step)
    predictions = _predictions(run, step, figures)
    found, baselines = _compare(predictions, figures, curves)
    series = _trained(curves["validation", metric])
    assert series is not None
    at = series.steps.astype(int).tolist().index(step)
    calibrated = calibration(predictions) if predictions else None
    roc, precision = threshold_curves(predictions) if predictions else ([], [])
    evaluated = Evaluated(
        metric,
        mode,
        [float(value) for value in series.values],
        at,
        {name: values[metric] for name, values in baselines.items() if metric in values},
        found.get(metric),
        len(predictions) if predictions else 0,
        _errors(figures, baselines, metric),
    )
    verdict = judge(evaluated, validation_loss=losses, calibration=calibrated)
    names = sorted(figures, key=lambda name: (name != metric, name == "loss"))
    rows = tuple(
        Row(
            name,
            figures[name],
            found.get(name),
            {of: values[name] for of, values in baselines.items() if name in values},
        )
        for name in names
    )
    columns, examples = tuple(baselines), len(predictions) if predictions else 0
    return Judgement(verdict, rows, columns, examples, calibrated, tuple(roc), tuple(precision))


def _errors(
    figures: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]], metric: str
) -> dict[str, tuple[float, float]]:
    """The errors of numbers beside the metric, each with that of the best baseline, where there is one."""
    return {
        name: (figures[name], min(known))
        for name in ERRORS
        if name != metric and name in figures and (known := [of[name] for of in baselines.values() if name in of])
    }


def _trained(series: Series | None) -> Series | None:
    """Without the evaluation before training (evaluation.at_start), which is a baseline; None where nothing else is there."""
    if series is None or not (kept := series.steps > 0).any():
        return None
    return Series(series.steps[kept], series.epochs[kept], series.values[kept])


def _figures_at(curves: Curves, step: int) -> dict[str, float]:
    """The figures of the validation split at one step."""
    figures = {}
    for (split, name), series in curves.items():
        steps = series.steps.astype(int).tolist()
        if split == "validation" and step in steps:
            figures[name] = float(series.values[steps.index(step)])
    return figures


def _predictions(run: Run, step: int, figures: Mapping[str, float]) -> Predictions | None:
    path = run.predictions / f"validation-step-{step:08d}.jsonl"
    return read_predictions(path, prediction_fields(figures), class_names(run))


def _compare(
    predictions: Predictions | None, figures: Mapping[str, float], curves: Curves
) -> tuple[dict[str, Interval], dict[str, dict[str, float]]]:
    """(intervals, baseline -> its figures)."""
    baselines: dict[str, dict[str, float]] = {}
    found: dict[str, Interval] = {}
    if predictions is not None:
        found = intervals(predictions, figures)
        name, values = baseline(predictions, figures)
        if values:
            baselines[name] = values
    untuned: dict[str, Any] = _figures_at(curves, 0)
    if untuned:
        baselines[UNTUNED] = untuned
    return found, baselines
