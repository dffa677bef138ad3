"""Pearson correlation: linear correlation of predicted and target values, from -1 to 1."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class Pearson(LocalMetric):
    """values, targets: float [examples]. None for fewer than two examples, or if one of the arrays is constant."""

    inputs: ClassVar[tuple[str, ...]] = ("values", "targets")
    description = "Pearson correlation of values and targets."
    undefined = "fewer than two examples, or all predictions or all targets are equal"

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        values, targets = inputs
        if len(values) < 2 or np.ptp(values) == 0 or np.ptp(targets) == 0 or not np.isfinite(values).all():
            return None
        return float(np.corrcoef(values, targets)[0, 1])
