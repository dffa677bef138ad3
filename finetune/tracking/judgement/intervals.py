"""95 % intervals of metrics: how far a figure might move if other examples of the same kind had been evaluated.

Metrics of numbers are computed on resamples of the examples (percentile bootstrap; Efron and Tibshirani 1993, chapter 13).
Those of texts, tags and boxes take seconds each, so they are computed on all examples but one of 20 groups (delete-a-group
jackknife, normal interval; Kott 2001), and only up to MAX_OBJECTS examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from finetune.metrics.catalogue import CATALOGUE
from finetune.metrics.metric_set import load
from finetune.tracking.judgement.predictions import Columns, Predictions

RESAMPLES = 1_000
MAX_DRAWN = 20_000_000  # examples drawn over all resamples; larger sets get fewer of them, at least MIN_RESAMPLES
MIN_RESAMPLES = 200
GROUPS = 20
MAX_OBJECTS = 2_000
MIN_EXAMPLES = 10
NORMAL_95 = 1.959964
SEED = 20_240_229  # intervals of the same predictions are the same at every look

Figure = Callable[[Columns], float | None]


@dataclass(frozen=True)
class Interval:
    """low, high: 95 % interval of a metric."""

    low: float
    high: float


def intervals(predictions: Predictions, metrics: Iterable[str]) -> dict[str, Interval]:
    """metric -> interval, for `loss` and those metrics of which every field is there. A metric that is undefined for most
    resamples has none, and neither has one of fewer than MIN_EXAMPLES examples.
    """
    found: dict[str, Interval] = {}
    if len(predictions) < MIN_EXAMPLES:
        return found
    for name in dict.fromkeys(["loss", *metrics]):
        entry = figure_of(name, predictions)
        if entry is None:
            continue
        columns, figure = entry
        numbers = all(column.dtype != object for column in columns.values())
        interval = _bootstrap(columns, figure) if numbers else _jackknife(columns, figure)
        if interval is not None:
            found[name] = _opened(name, interval, len(predictions))
    return found


def _opened(name: str, interval: Interval, count: int) -> Interval:
    """Where all examples are right, or none, no resample differs: then what an event that `count` examples did not show
    may still have as its probability (exact binomial interval; Clopper and Pearson 1934). Of metrics between 0 and 1.
    """
    bounded = name in CATALOGUE and CATALOGUE[name].direction == "max"
    if not bounded or interval.low != interval.high or interval.low not in (0.0, 1.0):
        return interval
    unseen = 1 - 0.025 ** (1 / count)
    return Interval(0.0, unseen) if interval.low == 0 else Interval(1 - unseen, 1.0)


def figure_of(name: str, predictions: Predictions) -> tuple[Columns, Figure] | None:
    """(columns, function of such columns) of a metric or `loss`; None if it is a table, or a field is missing."""
    if name == "loss":
        needed: tuple[str, ...] = ("loss", "weight")
    elif name in CATALOGUE and CATALOGUE[name].direction is not None:
        needed = CATALOGUE[name].fields
    else:
        return None
    if not set(needed) <= predictions.columns.keys():
        return None
    columns = {field: predictions.columns[field] for field in needed}
    if name == "loss":
        return columns, mean_loss
    metric = load(name, multi_label=predictions.multi_label)
    inputs = metric.inputs

    def figure(chosen: Columns) -> float | None:
        arrays: Mapping[str, np.ndarray] = dict(zip(inputs, (chosen[field] for field in needed), strict=True))
        value = metric.measure(arrays, labels=predictions.labels).get(metric.key)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    return columns, figure


def mean_loss(columns: Columns) -> float | None:
    """Sum of losses / sum of units; None without units."""
    weight = columns["weight"].sum()
    return float(columns["loss"].sum() / weight) if weight else None


def _bootstrap(columns: Columns, figure: Figure) -> Interval | None:
    count = len(next(iter(columns.values())))
    resamples = int(min(RESAMPLES, max(MIN_RESAMPLES, MAX_DRAWN // count)))
    rng = np.random.default_rng(SEED)
    values = []
    for _ in range(resamples):
        drawn = rng.integers(0, count, count)
        value = figure({name: column[drawn] for name, column in columns.items()})
        if value is not None:
            values.append(value)
    if len(values) < resamples / 2:
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return Interval(float(low), float(high))


def _jackknife(columns: Columns, figure: Figure) -> Interval | None:
    count = len(next(iter(columns.values())))
    if count > MAX_OBJECTS or count < GROUPS:
        return None
    whole = figure(columns)
    group = np.random.default_rng(SEED).permutation(count) % GROUPS
    values = [figure({name: column[group != one] for name, column in columns.items()}) for one in range(GROUPS)]
    if whole is None or any(value is None for value in values):
        return None
    left_out = np.asarray(values, np.float64)
    error = math.sqrt((GROUPS - 1) / GROUPS * float(((left_out - left_out.mean()) ** 2).sum()))
    return Interval(whole - NORMAL_95 * error, whole + NORMAL_95 * error)
