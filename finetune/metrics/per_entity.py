"""Precision, recall, F1 and support of each entity type, which an average may hide."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric
from finetune.metrics.spans import count_entities


class PerEntity(LocalMetric):
    """A table with one row per entity type that occurs: entity, precision, recall, f1, support.

    support: number of entities in the reference.
    """

    higher_is_better: ClassVar[bool | None] = None
    inputs: ClassVar[tuple[str, ...]] = ("tags", "reference_tags")
    description = "Precision, recall, F1 and support of each entity type."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> dict[str, Any]:
        tags, references = inputs
        counts = count_entities(tags, references, labels)
        rows = []
        if counts is not None:  # else the tags have no names, or there are none
            rows = [[entity, *counts.figures(entity), counts.references[entity]] for entity in counts.entities]
        return {"columns": ["entity", "precision", "recall", "f1", "support"], "rows": rows}
