"""What a model would reach that does not look at its input: always the most frequent class, always the mean, nothing found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from finetune.tracking.judgement.intervals import figure_of
from finetune.tracking.judgement.predictions import Columns, Predictions

MAJORITY = "always the most frequent class"
COMMON_LABELS = "always the labels of more than half of the examples"
NO_LABEL = "no label anywhere"
MEAN = "always the mean"
SAME = "the same reward for all replies"
NO_ENTITY = "no entity anywhere"
NO_BOX = "no box anywhere"
OUTSIDE = "O"
UNRELATED = ("pearson", "spearman")  # correlations, which a constant has none of: 0


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
        if entry is not None and value is None and metric in UNRELATED:
            value = 0.0
        if value is not None:
            figures[metric] = value
    return (name, figures) if figures else ("", {})


def _references(columns: Columns) -> Columns:
    return {field: columns[field] for field in ("reference", "target", "reference_tags", "objects") if field in columns}


def _constant(predictions: Predictions) -> tuple[str, Columns]:
    columns, count = predictions.columns, len(predictions)
    if "reference" in columns and predictions.multi_label:
        return _constant_labels(columns["reference"])
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
    if {"chosen_reward", "rejected_reward"} <= columns.keys():
        rewards = {field: columns[field] * 0.0 for field in ("chosen_reward", "rejected_reward")}  # NaN stays: no reply
        return SAME, rewards
    if "reference_tags" in columns and OUTSIDE in (predictions.labels or ()):
        outside = (predictions.labels or []).index(OUTSIDE)
        return NO_ENTITY, {"tags": _objects([outside] * len(tags) for tags in columns["reference_tags"])}
    if "objects" in columns:
        return NO_BOX, {"detections": _objects({"boxes": [], "labels": [], "scores": []} for _ in range(count))}
    return "", {}


def _constant_labels(reference: np.ndarray) -> tuple[str, Columns]:
    """Each label where more than half of the examples have it. reference: 0 or 1 [examples, labels]."""
    shares, count = reference.mean(axis=0), len(reference)
    common = shares > 0.5
    said = np.where(reference > 0, shares, 1 - shares)  # the probability that the shares give to what is true
    return COMMON_LABELS if common.any() else NO_LABEL, {
        "prediction": np.tile(common.astype(np.int8), (count, 1)),
        "scores": np.tile(shares.astype(np.float32), (count, 1)),
        "loss": -np.log(said).mean(axis=1),
        "weight": np.ones(count, np.int64),
    }


def _objects(values: Iterable[Any]) -> np.ndarray:
    """Python values as a column: object [examples]."""
    found = list(values)
    column = np.empty(len(found), object)
    column[:] = found
    return column
