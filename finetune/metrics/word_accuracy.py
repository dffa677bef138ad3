"""Word accuracy: fraction of words with the correct tag. Most words are O, so entity_f1 is more informative."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class WordAccuracy(LocalMetric):
    """tags, reference_tags: [examples], each a list with one tag per word. None without words."""

    inputs: ClassVar[tuple[str, ...]] = ("tags", "reference_tags")
    description = "Fraction of words with the correct tag."
    undefined = "there are no words"

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        correct = [tag == other for pair in zip(*inputs, strict=True) for tag, other in zip(*pair, strict=True)]
        return sum(correct) / len(correct) if correct else None
