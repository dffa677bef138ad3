"""Mean squared error."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class Mse(LocalMetric):
    """values, targets: float [examples]. None without examples."""

    higher_is_better: ClassVar[bool | None] = False
    inputs: ClassVar[tuple[str, ...]] = ("values", "targets")
    description = "Mean squared error of values against targets."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        values, targets = inputs
        return float(np.square(values - targets).mean()) if len(values) else None
