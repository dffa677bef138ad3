"""Curves from metrics.jsonl: one series per split and metric, downsampled so that 200,000 rows plot as fast as 200."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

NOT_FIGURES = ("step", "epoch", "split", "time", "data_version")


@dataclass(frozen=True)
class Series:
    """Values over steps, both [points], in the order logged, without rows where the metric is missing or null."""

    steps: np.ndarray
    epochs: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Thinned:
    """A downsampled series: mean, minimum and maximum of each interval of steps, so that no spike is lost."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def collect_series(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Series]:
    """(split, metric) -> Series."""
    columns: dict[tuple[str, str], tuple[list[float], list[float], list[float]]] = {}
    for row in rows:
        step, epoch, split = row.get("step"), row.get("epoch"), str(row.get("split", "train"))
        if not isinstance(step, (int, float)):
            continue
        for key, value in row.items():
            if key in NOT_FIGURES or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            steps, epochs, values = columns.setdefault((split, key), ([], [], []))
            steps.append(step)
            epochs.append(epoch if isinstance(epoch, (int, float)) else np.nan)
            values.append(value)
    return {key: Series(*(np.asarray(column, dtype=np.float64) for column in found)) for key, found in columns.items()}


def thin(series: Series, points: int = 400) -> Thinned:
    """At most `points` intervals with (nearly) equal numbers of rows."""
    count = len(series)
    if count <= points:
        return Thinned(series.steps, series.values, series.values, series.values)
    starts = np.linspace(0, count, points, endpoint=False).astype(np.int64)
    sizes = np.diff(np.append(starts, count))
    return Thinned(
        steps=np.add.reduceat(series.steps, starts) / sizes,
        mean=np.add.reduceat(series.values, starts) / sizes,
        low=np.minimum.reduceat(series.values, starts),
        high=np.maximum.reduceat(series.values, starts),
    )


def smooth(values: np.ndarray) -> np.ndarray:
    """Centered moving average over about 5 % of the points, applied twice (a spike becomes a hill, not a plateau). The
    window shrinks at both ends, so that they are not biased.
    """
    reach = len(values) // 60
    return _average(_average(values, reach), reach) if reach else values


def _average(values: np.ndarray, reach: int) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    half = np.minimum(reach, np.minimum(index, len(values) - 1 - index))
    return (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)
