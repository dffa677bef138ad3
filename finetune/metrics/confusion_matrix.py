"""Confusion matrix: how often examples of one class were taken for another."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from finetune.metrics.counts import confusions, label_counts, names_of
from finetune.metrics.metric import LocalMetric

MAX_CLASSES = 64  # above it the table lists the pairs most often confused
MAX_PAIRS = 500


class ConfusionMatrix(LocalMetric):
    """A table. Up to 64 classes: a row a reference class, ["reference", <class>, <class>, ...], all counts.

    More classes: ["reference", "predicted", "count"], the 500 commonest confusions. Multi-label: a row a label,
    ["label", "true_negative", "false_positive", "false_negative", "true_positive"].
    """

    higher_is_better: ClassVar[bool | None] = None
    description = "Counts of reference class by predicted class."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> dict[str, Any]:
        predictions, references = inputs
        names = names_of(labels, predictions, references)
        if self.multi_label:
            counts = label_counts(predictions, references, len(names)).tolist()
            columns = ["label", "true_negative", "false_positive", "false_negative", "true_positive"]
            return {"columns": columns, "rows": [[name, *row] for name, row in zip(names, counts, strict=True)]}
        matrix = confusions(predictions.astype(np.int64), references, len(names))
        if len(names) > MAX_CLASSES:
            return {"columns": ["reference", "predicted", "count"], "rows": _commonest(matrix, names)}
        rows = [[name, *row] for name, row in zip(names, matrix.tolist(), strict=True)]
        return {"columns": ["reference", *names], "rows": rows}


def _commonest(matrix: np.ndarray, names: list[str]) -> list[list[Any]]:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    cells = [np.unravel_index(place, wrong.shape) for place in order]
    return [[names[row], names[column], int(wrong[row, column])] for row, column in cells if wrong[row, column]]
