"""Precision, recall, F1 and support of each class, which an average may hide."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from finetune.metrics.counts import class_names, label_counts
from finetune.metrics.metric import LocalMetric


class PerClass(LocalMetric):
    """A table with one row per class (per label for multi-label): label, precision, recall, f1, support.

    support: number of examples of the class. Where the divisor is 0, the value is 0.
    """

    higher_is_better: ClassVar[bool | None] = None
    description = "Precision, recall, F1 and support of each class."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> dict[str, Any]:
        predictions, references = inputs
        names = class_names(labels, predictions, references)
        rows = []
        for name, (_, false_positive, false_negative, true_positive) in zip(
            names, label_counts(predictions, references, len(names)).tolist(), strict=True
        ):
            predicted, actual = true_positive + false_positive, true_positive + false_negative
            precision, recall = _ratio(true_positive, predicted), _ratio(true_positive, actual)
            rows.append([name, precision, recall, _ratio(2 * true_positive, predicted + actual), actual])
        return {"columns": ["label", "precision", "recall", "f1", "support"], "rows": rows}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
