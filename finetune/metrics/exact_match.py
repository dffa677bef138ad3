"""Exact match: the share of texts that equal their reference, blanks at the ends apart."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class ExactMatch(LocalMetric):
    """texts, reference_texts: [examples]. None without examples."""

    inputs: ClassVar[tuple[str, ...]] = ("texts", "reference_texts")
    description = "Share of texts equal to their reference."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        texts, references = (list(column) for column in inputs)
        right = [text.strip() == reference.strip() for text, reference in zip(texts, references, strict=True)]
        return sum(right) / len(right) if right else None
