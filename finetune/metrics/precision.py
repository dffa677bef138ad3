"""Precision, averaged over classes: of what was predicted as a class, the share that is of it."""

from __future__ import annotations

import numpy as np

from finetune.metrics.counts import score
from finetune.metrics.metric import LocalMetric


class Precision(LocalMetric):
    description = "Precision averaged over classes; a class never predicted counts 0."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        return score("precision", "macro", *inputs)
