"""Accuracy: the share of examples predicted right; for multi-label, of examples with every label right."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score

from finetune.metrics.metric import LocalMetric


class Accuracy(LocalMetric):
    description = "Share of examples predicted right. Multi-label (config multilabel): all labels of the example right."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        predictions, references = inputs
        if len(references) == 0:
            return None
        if references.ndim == 2:  # exact match, also for one column or none wrong
            return float((predictions == references).all(axis=1).mean())
        return float(accuracy_score(references, predictions))
