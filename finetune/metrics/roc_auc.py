"""ROC-AUC: the probability that a random positive example has a higher score than a random negative one."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from sklearn.metrics import roc_auc_score

from finetune.metrics.metric import LocalMetric


class RocAuc(LocalMetric):
    """prediction_scores: float [examples, classes] (softmax: rows sum to 1), or [examples, labels] for multi-label; of two
    classes also [examples], the scores of the second.

    Two classes: computed from the score of the second class. More classes, or multi-label: one class against the rest,
    averaged over the classes that have at least one positive and one negative example. None if no class has, or if a
    score is not finite.
    """

    inputs: ClassVar[tuple[str, ...]] = ("prediction_scores", "references")
    description = "Area under the ROC curve: two classes, one against the rest (macro), or multi-label (macro)."
    undefined = "no class has both positive and negative examples, or a score is not finite"

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        scores, references = inputs
        if len(references) == 0 or not np.isfinite(scores).all():
            return None
        if scores.ndim == 1:
            scores = scores[:, None]
        if references.ndim == 2:
            pairs = list(zip(scores.T, references.T, strict=True))
        elif scores.shape[1] <= 2:
            pairs = [(scores[:, -1], references == 1)]
        else:
            pairs = [(scores[:, label], references == label) for label in range(scores.shape[1])]
        figures = [roc_auc_score(truth, column) for column, truth in pairs if truth.min() != truth.max()]
        return float(np.mean(figures)) if figures else None
