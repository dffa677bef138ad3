"""Entity F1: harmonic mean of entity precision and recall, over all entities together (as seqeval)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric
from finetune.metrics.spans import count_entities


class EntityF1(LocalMetric):
    """tags, reference_tags: [examples], each a list of tags or of their indices in `labels`. None without examples."""

    inputs: ClassVar[tuple[str, ...]] = ("tags", "reference_tags")
    description = "Harmonic mean of entity precision and recall, over all entities together (as seqeval)."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        tags, references = inputs
        return count_entities(tags, references, labels).figures()[2] if len(tags) else None
