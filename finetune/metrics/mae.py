"""Mean absolute error."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class Mae(LocalMetric):
    """values, targets: float [examples]. None without examples."""

    higher_is_better: ClassVar[bool | None] = False
    inputs: ClassVar[tuple[str, ...]] = ("values", "targets")
    description = "Mean absolute error of values against targets."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        values, targets = inputs
        return float(np.abs(values - targets).mean()) if len(values) else None
