"""Micro F1: F1 of the summed counts of all classes. Equal to accuracy if every example has one label."""

from __future__ import annotations

import numpy as np

from finetune.metrics.counts import score
from finetune.metrics.metric import LocalMetric


class F1Micro(LocalMetric):
    """predictions, references: int [examples] or 0/1 [examples, labels]. None without examples."""

    description = "F1 of the summed counts of all classes."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        return score("f1", "micro", *inputs)
