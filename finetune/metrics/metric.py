"""Base class of the metrics in this folder: an `evaluate.Metric` that needs neither files nor a network.

A metric can be used in two ways, with the same result: `Accuracy().compute(predictions=..., references=...)` (also with
`add` and `add_batch`, inside `evaluate.combine`, or through `evaluate.load("path/to/accuracy.py")`), and `measure(...)` on
numpy arrays, which MetricSet calls: a million rows need not be converted.

What is added is kept as Python values, not in the typed Arrow table of `evaluate`: sentences have unequal lengths, and
tags are names or indices. Undefined results (no examples, a single class for ROC-AUC, no tokens) are None, never NaN, and
without a warning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from finetune.metrics.columns import as_array, as_list, index_classes
from finetune.metrics.inputs import INPUTS

MULTI_LABEL = "multilabel"  # config_name, as in the modules on the hub


class LocalMetric(evaluate.Metric, ABC):
    """Base class of metrics. With config_name "multilabel", predictions and references are 0/1, [examples, labels]."""

    higher_is_better: ClassVar[bool | None] = True
    inputs: ClassVar[tuple[str, ...]] = ("predictions", "references")
    description: ClassVar[str] = ""
    undefined: ClassVar[str] = "there are no examples"  # where `value` is None: why

    def __init__(self, config_name: str | None = None, **options: Any) -> None:
        if options.get("num_process", 1) != 1:
            raise ValueError(f"{type(self).__name__} computes in one process: gather the predictions there first")
        options.setdefault("keep_in_memory", True)
        super().__init__(config_name=config_name, **options)
        self._rows: dict[str, list[Any]] | None = None  # input -> one value per example; None: nothing was added

    def _build_data_dir(self) -> str:
        """The folder of its files. In memory it has none, so none is made: the home folder may be read-only."""
        return "" if self.keep_in_memory else str(super()._build_data_dir())

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
        found = INPUTS[name]
        value = datasets.Value(found.feature)
        lists = found.kind == "list" or (self.multi_label and found.kind == "class")
        return datasets.Sequence(value) if lists else value

    def _feature_names(self) -> list[str]:
        """What `evaluate.combine` picks for `add` and `add_batch`: predictions and references where a metric takes them."""
        return [name if name == "prediction_scores" else INPUTS[name].usual for name in self.inputs]

    def __len__(self) -> int:
        return len(next(iter(self._rows.values()))) if self._rows else 0

    def add(self, *, prediction: Any = None, reference: Any = None, **named: Any) -> None:
        """Add one example. named: under the names of `inputs`. Raises: ValueError if an input is missing or unknown."""
        given = {"predictions": prediction, "references": reference}
        given.update({name: value for name, value in named.items() if value is not None})
        self._keep({name: [value] for name, value in self._by_input(given, strict=True).items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None, **named: Any) -> None:
        """Add examples: one list, array or tensor for each input. Raises: ValueError as `add`, and for unequal lengths."""
        given = {"predictions": predictions, "references": references, **named}
        self._keep({name: as_list(value) for name, value in self._by_input(given, strict=True).items()})

    def compute(
        self, *, predictions: Any = None, references: Any = None, labels: Iterable[str] | None = None, **named: Any
    ) -> dict[str, Any]:
        """The metric over what was added, and over these examples; then nothing is left. See `measure` for the result.

        named: inputs under the names of `inputs`, in place of predictions and references. Inputs of other metrics in an
        `evaluate.combine` are ignored. labels: class names in the order of their indices.
        Raises: ValueError if an input is missing, for unequal lengths, and for an option that no metric has.
        """
        given = {"predictions": predictions, "references": references, **named}
        unknown = [name for name in named if name not in INPUTS]
        if unknown:
            raise ValueError(f"{self.key} has no input and no option {', '.join(unknown)}: {self._described()}")
        found = self._by_input(given, strict=self._rows is None)
        if found:
            self._keep({name: as_list(value) for name, value in found.items()})
        rows, self._rows = self._rows, None
        assert rows is not None
        names = [str(label) for label in labels] if labels is not None else None
        rows, names = index_classes(rows, names)
        return self.measure({name: as_array(name, rows[name]) for name in self.inputs}, labels=names)

    def _by_input(self, given: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
        """The values of `inputs`, each under its own name or as predictions and references. {} for none, unless strict."""
        found = {}
        for name in self.inputs:
            value = given.get(name)
            found[name] = given.get(INPUTS[name].usual) if value is None else value
        missing = [name for name, value in found.items() if value is None]
        if missing and (strict or len(missing) < len(found)):
            raise ValueError(f"{self.key} needs {', '.join(missing)}: {self._described()}")
        return {} if missing else found

    def _described(self) -> str:
        return "it takes " + " and ".join(
            name if name == INPUTS[name].usual else f"{name} (or {INPUTS[name].usual})" for name in self.inputs
        )

    def _keep(self, columns: Mapping[str, list[Any]]) -> None:
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            given = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise ValueError(f"{self.key} needs as many of each input, but got {given}")
        if self._rows is None:
            self._rows = {name: [] for name in self.inputs}
        for name, values in columns.items():
            self._rows[name] += values

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
