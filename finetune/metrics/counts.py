"""Counts by class that several metrics share: true and false positives, and confusions."""

from __future__ import annotations

from typing import Literal

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

Part = Literal["precision", "recall", "f1"]
_INDEX = {"precision": 0, "recall": 1, "f1": 2}


def score(
    part: Part, average: Literal["macro", "micro"], predictions: np.ndarray, references: np.ndarray
) -> float | None:
    """Precision, recall or F1 over classes; None without examples. Where the divisor is 0, the value is 0.

    predictions, references: class indices [examples], or 0/1 [examples, labels] for multi-label.
    average: "macro": mean over the classes that occur in predictions or references, as in scikit-learn; for
    multi-label, over all labels. "micro": from the sum of the counts of all classes.
    """
    if len(references) == 0:
        return None
    if references.ndim == 2 and references.shape[1] == 1:  # scikit-learn would interpret one column as two classes
        predictions, references = predictions[:, 0], references[:, 0]
        figures = precision_recall_fscore_support(references, predictions, average="binary", zero_division=0)
    else:
        figures = precision_recall_fscore_support(references, predictions, average=average, zero_division=0)
    return float(figures[_INDEX[part]])


def confusion_counts(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts of (reference, prediction) pairs, int64 [num_labels, num_labels]. All zero without examples."""
    pairs = references.astype(np.int64) * num_labels + predictions
    return np.bincount(pairs, minlength=num_labels * num_labels).reshape(num_labels, num_labels)


def label_counts(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> np.ndarray:
    """True negatives, false positives, false negatives and true positives of each label, int64 [num_labels, 4]."""
    if references.ndim == 2 and len(references):
        true_positive = (predictions & references).sum(axis=0, dtype=np.int64)
        predicted = predictions.sum(axis=0, dtype=np.int64)
        actual = references.sum(axis=0, dtype=np.int64)
    else:
        matrix = (
            confusion_counts(predictions, references, num_labels)
            if len(references)
            else np.zeros((num_labels,) * 2, int)
        )
        true_positive, predicted, actual = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    false_positive, false_negative = predicted - true_positive, actual - true_positive
    true_negative = len(references) - true_positive - false_positive - false_negative
    return np.stack([true_negative, false_positive, false_negative, true_positive], axis=1)


def class_names(labels: list[str] | None, predictions: np.ndarray, references: np.ndarray) -> list[str]:
    """`labels`, or if it is None "0", "1", ... up to the largest class that occurs (multi-label: one per column)."""
    if labels is not None:
        return list(labels)
    if references.ndim == 2:
        return [str(index) for index in range(references.shape[1])]
    largest = max((int(array.max()) for array in (predictions, references) if len(array)), default=-1)
    return [str(index) for index in range(largest + 1)]
