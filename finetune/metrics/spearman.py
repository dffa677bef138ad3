"""Spearman's correlation: how well the order of predicted values is that of the wanted ones, from -1 to 1."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.stats import rankdata

from finetune.metrics.metric import LocalMetric


class Spearman(LocalMetric):
    """values, targets: [examples]. Ties share their mean rank. None for fewer than two, or where one never changes."""

    inputs: ClassVar[tuple[str, ...]] = ("values", "targets")
    description = "Spearman's rank correlation of values and targets."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        values, targets = inputs
        if len(values) < 2 or np.ptp(values) == 0 or np.ptp(targets) == 0 or not np.isfinite(values).all():
            return None
        return float(np.corrcoef(rankdata(values), rankdata(targets))[0, 1])
