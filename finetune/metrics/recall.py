"""Recall, averaged over classes: of what is of a class, the share that was found."""

from __future__ import annotations

import numpy as np

from finetune.metrics.counts import score
from finetune.metrics.metric import LocalMetric


class Recall(LocalMetric):
    description = "Recall averaged over classes; a class that never occurs counts 0 if it was predicted."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        return score("recall", "macro", *inputs)
