"""Accuracy: fraction of examples predicted correctly; for multi-label, of examples with all labels correct."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score

from finetune.metrics.metric import LocalMetric


class Accuracy(LocalMetric):
    """predictions, references: int [examples] or [examples, labels]. None without examples."""

    description = "Fraction of examples predicted correctly. Multi-label (config multilabel): with all labels correct."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        predictions, references = inputs
        if len(references) == 0:
            return None
        if references.ndim == 2:  # all labels correct; also right for a single label
            return float((predictions == references).all(axis=1).mean())
        return float(accuracy_score(references, predictions))
