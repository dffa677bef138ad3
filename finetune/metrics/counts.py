"""Counts of classes behind several metrics: true positives and confusions, from class ids or 0/1 lists."""

from __future__ import annotations

from typing import Literal

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

Part = Literal["precision", "recall", "f1"]
_PLACE = {"precision": 0, "recall": 1, "f1": 2}


def score(
    part: Part, average: Literal["macro", "micro"], predictions: np.ndarray, references: np.ndarray
) -> float | None:
    """Precision, recall or F1 over classes; None without examples.

    Single label ([examples]): macro is over the classes that occur in predictions or references, as in scikit-learn.
    Multi-label ([examples, labels] of 0/1): macro is over all labels. Nothing to divide by counts as 0.
    """
    if len(references) == 0:
        return None
    if references.ndim == 2 and references.shape[1] == 1:  # scikit-learn would take one column for two classes
        predictions, references = predictions[:, 0], references[:, 0]
        figures = precision_recall_fscore_support(references, predictions, average="binary", zero_division=0)
    else:
        figures = precision_recall_fscore_support(references, predictions, average=average, zero_division=0)
    return float(figures[_PLACE[part]])


def confusions(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> np.ndarray:
    """[num_labels, num_labels] counts, row: reference, column: prediction. All zero without examples."""
    pairs = references.astype(np.int64) * num_labels + predictions
    return np.bincount(pairs, minlength=num_labels * num_labels).reshape(num_labels, num_labels)


def label_counts(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> np.ndarray:
    """[num_labels, 4]: true negatives, false positives, false negatives, true positives of each label."""
    if references.ndim == 2 and len(references):
        both = (predictions & references).sum(axis=0, dtype=np.int64)
        predicted = predictions.sum(axis=0, dtype=np.int64)
        referred = references.sum(axis=0, dtype=np.int64)
    else:
        matrix = (
            confusions(predictions, references, num_labels) if len(references) else np.zeros((num_labels,) * 2, int)
        )
        both, predicted, referred = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    false_positive, false_negative = predicted - both, referred - both
    rest = len(references) - both - false_positive - false_negative
    return np.stack([rest, false_positive, false_negative, both], axis=1)


def names_of(labels: list[str] | None, predictions: np.ndarray, references: np.ndarray) -> list[str]:
    """The class names, or "0", "1", ... up to the largest class (the number of columns) that occurs."""
    if labels is not None:
        return list(labels)
    if references.ndim == 2:
        return [str(index) for index in range(references.shape[1])]
    largest = max((int(array.max()) for array in (predictions, references) if len(array)), default=-1)
    return [str(index) for index in range(largest + 1)]
