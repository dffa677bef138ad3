"""F1, the harmonic mean of precision and recall, averaged over classes: each class weighs the same."""

from __future__ import annotations

import numpy as np

from finetune.metrics.counts import score
from finetune.metrics.metric import LocalMetric


class F1Macro(LocalMetric):
    description = "F1 averaged over classes. Multi-label (config multilabel): over labels."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        return score("f1", "macro", *inputs)
