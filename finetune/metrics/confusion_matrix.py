"""Confusion matrix: counts of examples by reference class and predicted class."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from finetune.metrics.counts import class_names, confusion_counts, label_counts
from finetune.metrics.metric import LocalMetric

MAX_CLASSES = 64  # with more classes, the table lists the most frequent confusions
MAX_PAIRS = 500


class ConfusionMatrix(LocalMetric):
    """A table of counts. With up to 64 classes, one row per reference class: ["reference", <class>, <class>, ...].

    More classes: ["reference", "predicted", "count"], the 500 most frequent confusions.
    Multi-label, one row per label: ["label", "true_negative", "false_positive", "false_negative", "true_positive"].
    """

    higher_is_better: ClassVar[bool | None] = None
    description = "Counts of reference class by predicted class."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> dict[str, Any]:
        predictions, references = inputs
        names = class_names(labels, predictions, references)
        if self.multi_label or references.ndim == 2:
            counts = label_counts(predictions, references, len(names)).tolist()
            columns = ["label", "true_negative", "false_positive", "false_negative", "true_positive"]
            return {"columns": columns, "rows": [[name, *row] for name, row in zip(names, counts, strict=True)]}
        matrix = confusion_counts(predictions.astype(np.int64), references, len(names))
        if len(names) > MAX_CLASSES:
            return {"columns": ["reference", "predicted", "count"], "rows": _most_frequent(matrix, names)}
        rows = [[name, *row] for name, row in zip(names, matrix.tolist(), strict=True)]
        return {"columns": ["reference", *names], "rows": rows}


def _most_frequent(matrix: np.ndarray, names: list[str]) -> list[list[Any]]:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    cells = [np.unravel_index(index, wrong.shape) for index in order]
    return [[names[row], names[column], int(wrong[row, column])] for row, column in cells if wrong[row, column]]
