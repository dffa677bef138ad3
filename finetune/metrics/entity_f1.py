"""Entity F1: harmonic mean of entity precision and recall, over all entities together (as seqeval)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric
from finetune.metrics.spans import entity_figure


class EntityF1(LocalMetric):
    """tags, reference_tags: [examples], each a list of tags or of their indices in `labels`.

    None without examples, and for tags without names (all numbers).
    """

    inputs: ClassVar[tuple[str, ...]] = ("tags", "reference_tags")
    description = "Harmonic mean of entity precision and recall, over all entities together (as seqeval)."
    undefined = "there are no examples, or the tags have no names"

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        tags, references = inputs
        return entity_figure(2, tags, references, labels)
