"""Spearman correlation: correlation of the ranks of predicted and target values, from -1 to 1."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.stats import rankdata

from finetune.metrics.metric import LocalMetric


class Spearman(LocalMetric):
    """values, targets: float [examples]. Ties get their mean rank.

    None for fewer than two examples, or if one of the arrays is constant.
    """

    inputs: ClassVar[tuple[str, ...]] = ("values", "targets")
    description = "Spearman rank correlation of values and targets."
    undefined = "fewer than two examples, or all predictions or all targets are equal"

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        values, targets = inputs
        if len(values) < 2 or np.ptp(values) == 0 or np.ptp(targets) == 0 or not np.isfinite(values).all():
            return None
        return float(np.corrcoef(rankdata(values), rankdata(targets))[0, 1])
