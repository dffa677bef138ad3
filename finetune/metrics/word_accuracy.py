"""Word accuracy: the share of words whose tag is right. Most words are O, so look at entity_f1 first."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class WordAccuracy(LocalMetric):
    """tags, reference_tags: a list for each example, equally long. None without words."""

    inputs: ClassVar[tuple[str, ...]] = ("tags", "reference_tags")
    description = "Share of words whose tag is right."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        right = [one == other for pair in zip(*inputs, strict=True) for one, other in zip(*pair, strict=True)]
        return sum(right) / len(right) if right else None
