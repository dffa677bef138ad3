"""Pearson's correlation: how well predicted values lie on a line with the wanted ones, from -1 to 1."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class Pearson(LocalMetric):
    """values, targets: [examples]. None for fewer than two, or where one of them never changes."""

    inputs: ClassVar[tuple[str, ...]] = ("values", "targets")
    description = "Pearson's correlation of values and targets."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        values, targets = inputs
        if len(values) < 2 or np.ptp(values) == 0 or np.ptp(targets) == 0 or not np.isfinite(values).all():
            return None
        return float(np.corrcoef(values, targets)[0, 1])
