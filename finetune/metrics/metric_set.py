"""The metrics of one evaluation: collects predictions in chunks as compact arrays, then computes all metrics."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.errors import FinetuneError, UserError
from finetune.metrics.catalogue import find
from finetune.metrics.inputs import column_type

if TYPE_CHECKING:
    from finetune.metrics.metric import LocalMetric

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """Results of an evaluation.

    scalars: metric -> finite number. A metric that is undefined for the data (no examples, one class for ROC-AUC) is
    absent, so that JSON never contains NaN. tables: name -> (columns, rows). undefined: metric -> why it is absent.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    tables: dict[str, tuple[list[str], list[list[Any]]]] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)


class MetricSet:
    """Computes the metrics of one evaluation. Used by rank 0 only, which adds every prediction once.

    names: metrics of the catalogue.
    num_labels or labels: number or names of the classes, if the task has classes; if both are None, the classes that
    occur are used. multi_label: predictions and references are 0/1 lists of length num_labels.
    Memory: 4 bytes per class index, 1 per 0/1 label, 4 per score if a metric needs scores (see nbytes).
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
        self._columns = {name: _Column(np.dtype(column_type(name, multi_label))) for name in sorted(fields)}

    def add(self, predictions: Sequence[Values]) -> None:
        """Add predictions with the fields that the metrics need, such as "prediction", "reference", "loss" and "weight".

        Raises: UserError if a field that a metric needs is missing; FinetuneError for a class index out of range.
        """
        if not predictions:
            return
        for name, column in self._columns.items():
            try:
                values = [prediction[name] for prediction in predictions]
            except KeyError:
                raise self._missing(name) from None
            if name in ("loss", "weight"):  # only the sums are needed, so one number per chunk is kept
                values = [math.fsum(values)]
            chunk = column.chunk(values)
            self._check(name, chunk)
            column.append(chunk)

    @property
    def nbytes(self) -> int:
        """Memory of the collected predictions in bytes."""
        return sum(column.nbytes for column in self._columns.values())

    def compute(self) -> Results:
        """Compute all metrics. The first call in a process imports `evaluate`, which takes seconds."""
        results = Results()
        for name, entry in self._entries.items():
            metric = load(name, multi_label=self._multi_label)
            arrays = dict(zip(metric.inputs, (self._columns[key].array for key in entry.fields), strict=True))
            for key, value in metric.measure(arrays, labels=self._labels).items():
                if isinstance(value, Mapping):
                    results.tables[key] = (list(value["columns"]), list(value["rows"]))
                elif value is not None and math.isfinite(value):
                    results.scalars[key] = float(value)
                elif key == name:  # others, such as map_small, are absent wherever there is nothing of their kind
                    results.undefined[key] = metric.undefined
        return results

    def _missing(self, field_name: str) -> UserError:
        users = [name for name, entry in self._entries.items() if field_name in entry.fields]
        return UserError(
            f"the metric {', '.join(users)} needs `{field_name}`, which this task's predictions do not have",
            where="evaluation.metrics",
            remedy=f"Remove {', '.join(users)} from evaluation.metrics.",
        )

    def _check(self, name: str, chunk: np.ndarray) -> None:
        """Check the range of class indices: one out of range would silently be missing from tables."""
        if name not in ("prediction", "reference"):
            return
        num_classes = 2 if self._multi_label else len(self._labels) if self._labels is not None else None
        if chunk.min(initial=0) < 0 or (num_classes is not None and chunk.max(initial=0) >= num_classes):
            raise FinetuneError(
                f"{name} {int(chunk.min())}..{int(chunk.max())} is outside the range of classes, "
                f"0..{(num_classes or 0) - 1}",
                where="evaluation",
                remedy="The task returned predictions that do not match its labels.",
            )


def load(name: str, *, multi_label: bool = False) -> LocalMetric:
    """Create a metric for `compute`, `measure` or `evaluate.combine`. Imports `evaluate`.

    Raises: UserError for an unknown name.
    """
    entry = find(name)
    metric_class = getattr(importlib.import_module(f"finetune.metrics.{entry.module}"), entry.type)
    return metric_class(config_name="multilabel" if multi_label else None)


class _Column:
    """An array to which chunks are appended; when it is full, its capacity grows by half."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._rows = np.empty((0,), dtype)
        self._count = 0

    def chunk(self, values: Sequence[Any]) -> np.ndarray:
        """The values of some examples as an array [examples, ...]; with dtype object always [examples]."""
        if self._dtype.kind != "O":  # keep integers wide, so that they do not overflow before the range check
            return np.asarray(values, np.float64 if self._dtype == np.float64 else None)
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
