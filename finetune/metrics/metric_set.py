"""The metrics of one evaluation: predictions come in chunks, stay as compact arrays, become figures at the end."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.errors import FinetuneError, UserError
from finetune.metrics.catalogue import find

if TYPE_CHECKING:
    from finetune.metrics.metric import LocalMetric

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """scalars: metric -> finite number; a metric that is undefined for the data (no examples, one class for ROC-AUC)
    is absent, so nothing here can become NaN in JSON. tables: name -> (columns, rows).
    """

    scalars: dict[str, float] = field(default_factory=dict)
    tables: dict[str, tuple[list[str], list[list[Any]]]] = field(default_factory=dict)


class MetricSet:
    """Rank 0 makes one for each evaluation, adds every prediction once, and computes.

    names: metrics of the catalogue. num_labels or labels: classes of the task, if it has classes; without them, as many
    as occur. multi_label: prediction and reference are 0/1 lists of length num_labels.
    Memory: 4 bytes for each class id, 1 for each 0/1 label, 4 for each score if a metric needs scores (see nbytes).
    Raises: UserError for an unknown name.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        multi_label: bool = False,
    ) -> None:
        self._entries = {name: find(name) for name in names}
        self._labels = [str(label) for label in labels] if labels is not None else None
        if self._labels is None and num_labels is not None:
            self._labels = [str(index) for index in range(num_labels)]
        self._multi_label = multi_label
        fields = {name for entry in self._entries.values() for name in entry.fields}
        self._columns = {name: _Column(_dtype(name, multi_label)) for name in sorted(fields)}

    def add(self, predictions: Sequence[Values]) -> None:
        """Take a chunk in: {"prediction", "reference", "scores", "loss", "weight", ...}, whichever the metrics need.

        Raises: UserError if a field that a metric needs is missing; FinetuneError for a class out of range.
        """
        if not predictions:
            return
        for name, column in self._columns.items():
            try:
                values = [prediction[name] for prediction in predictions]
            except KeyError:
                raise self._missing(name) from None
            if name in ("loss", "weight"):  # only the sums are needed: one row a chunk keeps memory flat
                values = [math.fsum(values)]
            chunk = column.chunk(values)
            self._check(name, chunk)
            column.append(chunk)

    @property
    def nbytes(self) -> int:
        """Bytes that the collected predictions take."""
        return sum(column.nbytes for column in self._columns.values())

    def compute(self) -> Results:
        """All figures and tables. The first call of a process imports `evaluate`: seconds."""
        results = Results()
        for name, entry in self._entries.items():
            metric = load(name, multi_label=self._multi_label)
            arrays = dict(zip(metric.inputs, (self._columns[key].array for key in entry.fields), strict=True))
            for key, value in metric.measure(arrays, labels=self._labels).items():
                if isinstance(value, Mapping):
                    results.tables[key] = (list(value["columns"]), list(value["rows"]))
                elif value is not None and math.isfinite(value):
                    results.scalars[key] = float(value)
        return results

    def _missing(self, field_name: str) -> UserError:
        users = [name for name, entry in self._entries.items() if field_name in entry.fields]
        return UserError(
            f"the metric {', '.join(users)} needs `{field_name}`, which this task's predictions do not have",
            where="evaluation.metrics",
            remedy=f"remove {', '.join(users)} from evaluation.metrics",
        )

    def _check(self, name: str, chunk: np.ndarray) -> None:
        """A class that the labels do not cover would vanish from the tables without a word."""
        if name not in ("prediction", "reference"):
            return
        top = 2 if self._multi_label else len(self._labels) if self._labels is not None else None
        if chunk.min(initial=0) < 0 or (top is not None and chunk.max(initial=0) >= top):
            raise FinetuneError(
                f"{name} {int(chunk.min())}..{int(chunk.max())} lies outside the classes 0..{(top or 0) - 1}",
                where="evaluation",
                remedy="the task gave predictions that do not fit its labels",
            )


def load(name: str, *, multi_label: bool = False) -> LocalMetric:
    """The `evaluate` module of a metric, ready for `compute` or `evaluate.combine`. Imports `evaluate`."""
    entry = find(name)
    kind = getattr(importlib.import_module(f"finetune.metrics.{entry.module}"), entry.type)
    return kind(config_name="multilabel" if multi_label else None)


def _dtype(name: str, multi_label: bool) -> type[Any]:
    """Of a field's column; what has no number for each example (texts, sequences, boxes) stays the object that it is."""
    if name in ("prediction", "reference"):
        return np.int8 if multi_label else np.int32
    return _DTYPES.get(name, object)


_DTYPES: dict[str, type[np.generic]] = {
    "scores": np.float32,
    "loss": np.float64,
    "weight": np.int64,
    "value": np.float64,
    "target": np.float64,
    "chosen_reward": np.float64,
    "rejected_reward": np.float64,
    "reward": np.float64,
    "desirable": np.int8,
}


class _Column:
    """An array that grows by half whenever it is full: rows are appended without keeping Python objects."""

    def __init__(self, dtype: type[Any]) -> None:
        self._dtype = dtype
        self._rows = np.empty((0,), dtype)
        self._count = 0

    def chunk(self, values: Sequence[Any]) -> np.ndarray:
        """Values of some examples, [examples, ...]; objects are never looked into: [examples], whatever they hold."""
        if self._dtype is not object:  # an integer too large must not wrap round before it is checked
            return np.asarray(values, np.float64 if self._dtype is np.float64 else None)
        objects = np.empty((len(values),), object)
        for index, value in enumerate(values):
            objects[index] = value
        return objects

    def append(self, chunk: np.ndarray) -> None:
        needed = self._count + len(chunk)
        if self._count == 0 or needed > len(self._rows):
            rows = np.empty((max(needed, len(self._rows) * 3 // 2), *chunk.shape[1:]), self._dtype)
            if self._count:
                rows[: self._count] = self._rows[: self._count]
            self._rows = rows
        self._rows[self._count : needed] = chunk
        self._count = needed

    @property
    def array(self) -> np.ndarray:
        return self._rows[: self._count]

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes
