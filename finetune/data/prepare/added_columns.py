"""Encoded examples with columns that were computed later, such as log-probabilities of a reference model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.table import Examples

if TYPE_CHECKING:
    import numpy as np


class ExamplesWithColumns:
    """`examples` with additional numeric columns. columns: name -> float64 [examples], in the order of `examples`."""

    def __init__(self, examples: Examples, columns: Mapping[str, np.ndarray]) -> None:
        assert all(len(column) == len(examples) for column in columns.values())
        self.examples, self.columns = examples, dict(columns)

    @property
    def ids(self) -> Sequence[int] | np.ndarray:
        return self.examples.ids

    @property
    def costs(self) -> Sequence[int] | np.ndarray:
        return self.examples.costs

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.examples[index], **{name: float(column[index]) for name, column in self.columns.items()}}
