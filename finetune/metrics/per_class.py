"""Precision, recall, F1 and support of each class: where a good average hides a bad class."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from finetune.metrics.counts import label_counts, names_of
from finetune.metrics.metric import LocalMetric


class PerClass(LocalMetric):
    """A table, a row a class (a label, for multi-label): label, precision, recall, f1, support.

    Classes that never occur have support 0; a figure with nothing to divide by is 0.
    """

    higher_is_better: ClassVar[bool | None] = None
    description = "Precision, recall, F1 and support of each class."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> dict[str, Any]:
        predictions, references = inputs
        names = names_of(labels, predictions, references)
        rows = []
        for name, (_, wrong, missed, right) in zip(
            names, label_counts(predictions, references, len(names)).tolist(), strict=True
        ):
            precision, recall = _share(right, right + wrong), _share(right, right + missed)
            rows.append([name, precision, recall, _share(2 * right, 2 * right + wrong + missed), right + missed])
        return {"columns": ["label", "precision", "recall", "f1", "support"], "rows": rows}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
