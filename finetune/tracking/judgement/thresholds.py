"""ROC and precision-recall curves: what every threshold of the score would give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune.tracking.judgement.predictions import Predictions

MAX_CURVES = 6
MAX_POINTS = 200


@dataclass(frozen=True)
class Curve:
    """label: the class. across, up: [points]; of ROC false and true positive rate, of PR recall and precision.

    area: under the ROC curve, or the average precision.
    """

    label: str
    across: np.ndarray
    up: np.ndarray
    area: float


def threshold_curves(predictions: Predictions) -> tuple[list[Curve], list[Curve]]:
    """(ROC, PR) of the most frequent classes, one against the rest; of two classes that of the second. [] without scores.

    A class of which all or none of the examples are has no curve.
    """
    columns = predictions.columns
    if not {"scores", "reference"} <= columns.keys() or columns["scores"].ndim != 2:
        return [], []
    # most of a second, with pandas and pyarrow: not while a rank starts
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    scores, references = columns["scores"], columns["reference"]
    truth = references.astype(bool) if references.ndim == 2 else references[:, None] == np.arange(scores.shape[1])
    classes = [1] if scores.shape[1] == 2 and references.ndim == 1 else list(range(scores.shape[1]))
    known = [one for one in classes if 0 < truth[:, one].sum() < len(truth)]
    chosen = sorted(known, key=lambda one: -int(truth[:, one].sum()))[:MAX_CURVES]
    names = predictions.labels or [str(index) for index in range(scores.shape[1])]
    roc, precision = [], []
    for one in chosen:
        right, score = truth[:, one], scores[:, one]
        false_rate, true_rate, _ = roc_curve(right, score)
        roc.append(Curve(names[one], *_thin(false_rate, true_rate), float(roc_auc_score(right, score))))
        precisions, recalls, _ = precision_recall_curve(right, score)
        points = _thin(recalls[::-1], precisions[::-1])
        precision.append(Curve(names[one], *points, float(average_precision_score(right, score))))
    return roc, precision


def _thin(across: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(across) <= MAX_POINTS:
        return across, up
    kept = np.unique(np.linspace(0, len(across) - 1, MAX_POINTS).astype(int))
    return across[kept], up[kept]
