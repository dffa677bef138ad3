"""Two models on the same examples: how far their figures differ, and who wins which example.

The difference of a metric is computed on resamples of the examples that both answered, the same for both (paired bootstrap;
Koehn 2004): what both find hard cancels out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from finetune.tracking.judgement.intervals import MIN_EXAMPLES, SEED, Interval, figure_of
from finetune.tracking.judgement.predictions import Predictions

RESAMPLES = 500
MAX_DRAWN = 10_000_000  # examples drawn over all resamples
MIN_RESAMPLES = 200
CLOSE = 1e-6  # losses that differ by less are a tie: float32 rounds about as far, on another number of ranks or slices


@dataclass(frozen=True)
class Difference:
    """second - first of one metric on the examples of both. interval: of the difference; None for metrics of texts, tags and
    boxes, and for few examples. certain: the interval does not contain 0.
    """

    metric: str
    first: float
    second: float
    interval: Interval | None

    @property
    def value(self) -> float:
        return self.second - self.first

    @property
    def certain(self) -> bool:
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high

    def describe(self) -> str:
        """For people: "+0.012 (-0.003 to +0.027), may be chance". Equal figures are no difference, whatever the interval."""
        text = f"{self.value:+.4g}" if self.value else "no difference"
        if self.interval is None or self.interval.low == self.interval.high == self.value == 0:
            return text
        interval = f" ({self.interval.low:+.3g} to {self.interval.high:+.3g})"
        return f"{text}{interval}{', may be chance' if self.value and not self.certain else ''}"


@dataclass(frozen=True)
class Wins:
    """Examples on which each has the lower loss per unit, and ties, of which `identical` are equal bit for bit. examples: ids,
    the largest gains and losses of the second, each with (id, loss of the first, loss of the second).
    """

    first: int
    second: int
    ties: int
    identical: int
    gains: tuple[tuple[int, float, float], ...]
    setbacks: tuple[tuple[int, float, float], ...]

    def describe(self, first: str, second: str) -> str:
        """For people, with the names of both: "B has the lower loss on 5, A on 2, equal on 1"; or in what they are equal."""
        if self.first or self.second:
            return f"{second} has the lower loss on {self.second:,}, {first} on {self.first:,}, equal on {self.ties:,}"
        if self.identical == self.ties:
            return f"{first} and {second} are equal, the loss of each example bit for bit"
        within = f"no loss differs by more than {CLOSE:.0e} per unit, {self.identical:,} are equal bit for bit"
        return f"{first} and {second} are equal: {within}"


def differences(first: Predictions, second: Predictions, metrics: Iterable[str]) -> list[Difference]:
    """Of each metric of which both have all fields. Both hold the same examples in the same order."""
    count = len(first)
    resamples = int(min(RESAMPLES, max(MIN_RESAMPLES, MAX_DRAWN // max(count, 1))))
    found = []
    for metric in metrics:
        entry, other_entry = figure_of(metric, first), figure_of(metric, second)
        if entry is None or other_entry is None:
            continue
        (columns, figure), (others, _) = entry, other_entry
        values = figure(columns), figure(others)
        if values[0] is None or values[1] is None:
            continue
        interval = None
        if count >= MIN_EXAMPLES and all(column.dtype != object for column in columns.values()):
            gaps = []
            rng = np.random.default_rng(SEED)  # the same resamples for each metric, one at a time in memory
            for rows in (rng.integers(0, count, count) for _ in range(resamples)):
                one = figure({name: column[rows] for name, column in columns.items()})
                other = figure({name: column[rows] for name, column in others.items()})
                gaps += [] if one is None or other is None else [other - one]
            if len(gaps) > resamples / 2:
                interval = Interval(*(float(edge) for edge in np.percentile(gaps, (2.5, 97.5))))
        found.append(Difference(metric, values[0], values[1], interval))
    return found


def count_wins(ids: np.ndarray, first: Predictions, second: Predictions, shown: int = 10) -> Wins | None:
    """By the loss per unit of each example; None where losses are missing."""
    if not all({"loss", "weight"} <= one.columns.keys() for one in (first, second)):
        return None
    losses = [one.columns["loss"] / np.maximum(one.columns["weight"], 1) for one in (first, second)]
    gain = losses[0] - losses[1]
    order = np.argsort(gain, kind="stable")

    def examples(chosen: Iterable[int]) -> tuple[tuple[int, float, float], ...]:
        return tuple((int(ids[at]), float(losses[0][at]), float(losses[1][at])) for at in chosen)

    return Wins(
        first=int((gain < -CLOSE).sum()),
        second=int((gain > CLOSE).sum()),
        ties=int((np.abs(gain) <= CLOSE).sum()),
        identical=int(
            np.logical_and(*(first.columns[name] == second.columns[name] for name in ("loss", "weight"))).sum()
        ),
        gains=examples([at for at in order[::-1][:shown] if gain[at] > CLOSE]),
        setbacks=examples([at for at in order[:shown] if gain[at] < -CLOSE]),
    )
