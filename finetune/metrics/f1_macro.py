"""Macro F1: the mean over classes of F1, the harmonic mean of precision and recall."""

from __future__ import annotations

import numpy as np

from finetune.metrics.counts import score
from finetune.metrics.metric import LocalMetric


class F1Macro(LocalMetric):
    """predictions, references: int [examples] or 0/1 [examples, labels]. None without examples."""

    description = "F1 averaged over classes. Multi-label (config multilabel): over labels."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        return score("f1", "macro", *inputs)
