"""Entity precision: fraction of the predicted entities whose boundaries and type are correct."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric
from finetune.metrics.spans import entity_figure


class EntityPrecision(LocalMetric):
    """tags, reference_tags: [examples], each a list of tags or of their indices in `labels`.

    None without examples, and for tags without names (all numbers).
    """

    inputs: ClassVar[tuple[str, ...]] = ("tags", "reference_tags")
    description = "Fraction of the predicted entities whose boundaries and type are correct."
    undefined = "there are no examples, or the tags have no names"

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        tags, references = inputs
        return entity_figure(0, tags, references, labels)
