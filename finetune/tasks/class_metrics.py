"""Metrics of classification tasks, for their cards. Imports nothing heavy."""

from __future__ import annotations

METRICS = (
    "accuracy", "f1_macro", "f1_micro", "precision", "recall", "matthews", "roc_auc", "confusion_matrix", "per_class",
)  # fmt: skip
DEFAULT_METRICS = ("accuracy", "f1_macro", "confusion_matrix", "per_class")
