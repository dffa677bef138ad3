"""Whether scores mean what they say: of the answers given with 0.8, are 80 % right?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune.tracking.judgement.predictions import Predictions

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """error: expected calibration error, the mean distance between confidence and accuracy, weighted by examples (Guo and
    others 2017, 15 bins of equal width). confidence, accuracy, share: of each bin that has examples, [bins].
    """

    error: float
    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray

    @property
    def confidence_excess(self) -> float:
        """The mean confidence less the accuracy: above 0, the scores are too high."""
        return float((self.share * (self.confidence - self.accuracy)).sum())


def calibration(predictions: Predictions) -> Calibration | None:
    """Of the score of the predicted class; None for tasks without classes, with several labels, or without scores that are
    probabilities.
    """
    columns = predictions.columns
    if predictions.multi_label or not {"scores", "prediction", "reference"} <= columns.keys():
        return None
    scores, predicted = columns["scores"], columns["prediction"]
    if scores.ndim != 2 or not len(scores) or not np.allclose(scores.sum(axis=1), 1, atol=1e-2):
        return None
    confidence = scores[np.arange(len(scores)), predicted].astype(np.float64)
    right = (predicted == columns["reference"]).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    held = counts > 0
    means = [np.bincount(bins, values, BINS)[held] / counts[held] for values in (confidence, right)]
    share = counts[held] / len(scores)
    return Calibration(float((share * np.abs(means[0] - means[1])).sum()), means[0], means[1], share)
