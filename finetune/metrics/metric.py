"""Base class of the metrics in this folder: an `evaluate.Metric` that needs neither files nor a network.

A metric can be used in two ways, with the same result: `Accuracy().compute(predictions=..., references=...)` (also
inside `evaluate.combine`, or through `evaluate.load("path/to/accuracy.py")`), and `measure(...)` on numpy arrays,
which MetricSet calls: a million rows need not be converted to Arrow.

Undefined results (no examples, a single class for ROC-AUC, no tokens) are None, never NaN, and without a warning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

MULTI_LABEL = "multilabel"  # config_name, as in the modules on the hub

FEATURES = {
    "predictions": "int64",
    "references": "int64",
    "prediction_scores": "float32",
    "loss_sums": "float64",
    "weights": "int64",
    "values": "float64",
    "targets": "float64",
    "tags": "string",
    "reference_tags": "string",
    "texts": "string",
    "reference_texts": "string",
    "chosen_rewards": "float64",
    "rejected_rewards": "float64",
    "rewards": "float64",
    "desirable": "int8",
}
LISTS = ("prediction_scores", "tags", "reference_tags")  # a list for each example


class LocalMetric(evaluate.Metric, ABC):
    """Base class of metrics. With config_name "multilabel", predictions and references are 0/1, [examples, labels]."""

    higher_is_better: ClassVar[bool | None] = True
    inputs: ClassVar[tuple[str, ...]] = ("predictions", "references")
    description: ClassVar[str] = ""

    def __init__(self, config_name: str | None = None, **options: Any) -> None:
        options.setdefault("keep_in_memory", True)
        super().__init__(config_name=config_name, **options)

    @property
    def multi_label(self) -> bool:
        """Whether the metric was created with config_name "multilabel"."""
        return self.config_name == MULTI_LABEL

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description=self.description,
            features=datasets.Features({name: self._feature(name) for name in self.inputs}),
        )

    def _feature(self, name: str) -> Any:
        value = datasets.Value(FEATURES[name])
        lists = name in LISTS or (self.multi_label and name in ("predictions", "references"))
        return datasets.Sequence(value) if lists else value

    def _compute(self, *, labels: list[str] | None = None, **inputs: Any) -> dict[str, Any]:
        """Called by `compute`. Inputs of other metrics in an `evaluate.combine` are ignored."""
        arrays = {name: _as_array(inputs[name]) for name in self.inputs}
        return self.measure(arrays, labels=labels)

    def measure(self, arrays: Mapping[str, np.ndarray], *, labels: list[str] | None = None) -> dict[str, Any]:
        """Compute the metric: {"<metric>": number, None if undefined, or a table {"columns": [...], "rows": [[...]]}}.

        arrays: one array for each of `inputs`: [examples], or [examples, labels] for scores and multi-label.
        labels: class names in the order of their indices.
        """
        ordered = [arrays[name] for name in self.inputs]
        lengths = {len(array) for array in ordered}
        assert len(lengths) == 1, f"{type(self).__name__}: inputs of different lengths {lengths}"
        value = self.value(*ordered, labels=labels)
        return {self.key: value}

    @property
    def key(self) -> str:
        """The name of the metric in results, which is also the name of its file: f1_macro for F1Macro."""
        return self.name

    @abstractmethod
    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> Any:
        """The value or table for arrays in the order of `inputs`. Must accept arrays of length 0."""


def _as_array(values: Any) -> np.ndarray:
    """Convert a column of `compute`: an array [examples], or an object array of lists."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values
    rows = list(values)
    return np.asarray(rows) if rows else np.empty((0,))
