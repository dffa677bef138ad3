"""Exact match: fraction of texts equal to their reference, ignoring whitespace at both ends."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class ExactMatch(LocalMetric):
    """texts, reference_texts: strings [examples]. None without examples."""

    inputs: ClassVar[tuple[str, ...]] = ("texts", "reference_texts")
    description = "Fraction of texts equal to their reference."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        texts, references = (list(column) for column in inputs)
        correct = [text.strip() == reference.strip() for text, reference in zip(texts, references, strict=True)]
        return sum(correct) / len(correct) if correct else None
