"""Inputs of a metric that is used alone: from lists, arrays, tensors and names of classes to the arrays of `measure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.metrics.inputs import INPUTS

CLASSES = tuple(name for name, one in INPUTS.items() if one.kind == "class")


def as_list(values: Any) -> list[Any]:
    """The values of a list, an array, a tensor or a column, one per example. Raises: ValueError for anything else."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
        raise ValueError(f"one value per example is needed (a list), not {type(values).__name__}")
    return [value.tolist() if hasattr(value, "tolist") else value for value in values]


def index_classes(
    rows: Mapping[str, list[Any]], labels: list[str] | None
) -> tuple[dict[str, list[Any]], list[str] | None]:
    """Names of classes as their indices: ["cat", "dog"] -> [0, 1], with the names from `labels`, or those that occur, A to
    Z. Raises: ValueError for a name that is not among `labels`.
    """
    named = [name for name in CLASSES if any(isinstance(value, str) for value in rows.get(name, ()))]
    if not named:
        return dict(rows), labels
    occurring = sorted({str(value) for name in CLASSES for value in rows.get(name, ())})
    names = labels if labels is not None else occurring
    unknown = [name for name in occurring if name not in names]
    if unknown:
        raise ValueError(f"{', '.join(unknown[:5])}: not among the labels {', '.join(names[:20])}")
    index = {name: number for number, name in enumerate(names)}
    return {
        name: [index[str(value)] for value in values] if name in CLASSES else list(values)
        for name, values in rows.items()
    }, names


def as_array(name: str, values: Sequence[Any]) -> np.ndarray:
    """The array of one input: [examples], or [examples, labels]; texts, tags and boxes: objects, [examples].

    Raises: ValueError for a class that is not a whole number, and for several references of one text.
    """
    found = INPUTS[name]
    if not found.dtype:
        array = np.empty(len(values), object)
        for index, value in enumerate(values):
            array[index] = _single_text(name, value) if found.kind == "text" else value
        return array
    if found.kind == "class":
        return _class_array(name, values)
    return np.asarray(values, found.dtype)


def _class_array(name: str, values: Sequence[Any]) -> np.ndarray:
    if not len(values):
        return np.empty((0,), np.int64)
    array = np.asarray(values)
    if array.dtype.kind not in "iub":
        whole = np.asarray(array, np.float64)
        if not (np.isfinite(whole).all() and (whole == np.round(whole)).all()):
            raise ValueError(f"{name} are classes (whole numbers or names), but hold {values[0]!r}")
        array = whole
    return array.astype(np.int64)


def _single_text(name: str, value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) == 1:  # as the hub's modules write references
        value = value[0]
    if not isinstance(value, str):
        raise ValueError(f"{name} needs one text per example, not {value!r}")
    return value
