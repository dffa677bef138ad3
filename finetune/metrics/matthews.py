"""Matthews correlation coefficient: 1 is perfect, 0 is chance level. Suits classes of unequal frequency."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import matthews_corrcoef

from finetune.metrics.metric import LocalMetric


class Matthews(LocalMetric):
    """predictions, references: int [examples] or 0/1 [examples, labels]. None without examples."""

    description = (
        "Correlation of predictions and references, -1 to 1. Multi-label (config multilabel): mean over labels."
    )

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        predictions, references = inputs
        if len(references) == 0:
            return None
        if references.ndim == 2:
            return float(np.mean([_matthews(p, r) for p, r in zip(predictions.T, references.T, strict=True)]))
        return _matthews(predictions, references)


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    """The coefficient; 0 if predictions or references are constant, as in scikit-learn, but without its warning."""
    if predictions.min() == predictions.max() or references.min() == references.max():
        return 0.0
    return float(matthews_corrcoef(references, predictions))
