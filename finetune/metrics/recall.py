"""Macro recall: the mean over classes of the fraction of examples of a class that are predicted as it."""

from __future__ import annotations

import numpy as np

from finetune.metrics.counts import score
from finetune.metrics.metric import LocalMetric


class Recall(LocalMetric):
    """predictions, references: int [examples] or 0/1 [examples, labels]. None without examples."""

    description = "Recall averaged over classes; 0 for a class that is predicted but never occurs."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        return score("recall", "macro", *inputs)
