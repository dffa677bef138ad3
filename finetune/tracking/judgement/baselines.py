"""What a model would reach that does not look at its input: always the most frequent class, always the mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from finetune.tracking.judgement.intervals import figure_of
from finetune.tracking.judgement.predictions import Columns, Predictions

MAJORITY = "always the most frequent class"
MEAN = "always the mean"


def baseline(predictions: Predictions, metrics: Iterable[str]) -> tuple[str, dict[str, float]]:
    """(what it does, metric -> figure) of the best constant answer to the evaluated examples; ("", {}) for tasks that have
    none. With several labels, each one is given where more than half of the examples have it. The loss and the scores are those
    of a model that always answers with the shares of the classes.
    """
    name, constant = _constant(predictions)
    if not constant:
        return "", {}
    guessing = replace(predictions, columns={**_references(predictions.columns), **constant})
    figures = {}
    for metric in metrics:
        entry = figure_of(metric, guessing)
        value = entry[1](entry[0]) if entry is not None else None
        if value is not None:
            figures[metric] = value
    return (name, figures) if figures else ("", {})


def _references(columns: Columns) -> Columns:
    return {field: columns[field] for field in ("reference", "target") if field in columns}


def _constant(predictions: Predictions) -> tuple[str, Columns]:
    columns, count = predictions.columns, len(predictions)
    if "reference" in columns and predictions.multi_label:
        shares = columns["reference"].mean(axis=0)
        rows = {"prediction": (shares > 0.5).astype(np.int8), "scores": shares.astype(np.float32)}
        return MAJORITY, {field: np.tile(row, (count, 1)) for field, row in rows.items()}
    if "reference" in columns and columns["reference"].ndim == 1 and columns["reference"].dtype != object:
        classes = len(predictions.labels or ()) or int(columns["reference"].max()) + 1
        counts = np.bincount(columns["reference"], minlength=classes)
        shares = counts / counts.sum()
        return MAJORITY, {
            "prediction": np.full(count, counts.argmax(), np.int32),
            "scores": np.tile(shares.astype(np.float32), (count, 1)),
            "loss": -np.log(shares[columns["reference"]]),
            "weight": np.ones(count, np.int64),
        }
    if "target" in columns and columns["target"].dtype == np.float64:
        return MEAN, {"value": np.full(count, columns["target"].mean())}
    return "", {}
