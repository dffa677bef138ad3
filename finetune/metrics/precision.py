"""Macro precision: the mean over classes of the fraction of predictions of a class that are correct."""

from __future__ import annotations

import numpy as np

from finetune.metrics.counts import score
from finetune.metrics.metric import LocalMetric


class Precision(LocalMetric):
    """predictions, references: int [examples] or 0/1 [examples, labels]. None without examples."""

    description = "Precision averaged over classes; 0 for a class that is never predicted."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        return score("precision", "macro", *inputs)
