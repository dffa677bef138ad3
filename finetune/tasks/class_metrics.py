"""Metrics of classification tasks, for their cards. Imports nothing heavy."""

from __future__ import annotations

from finetune.metrics.catalogue import metrics_of

METRICS = metrics_of("prediction", "reference", "scores")
DEFAULT_METRICS = ("accuracy", "f1_macro", "confusion_matrix", "per_class")
