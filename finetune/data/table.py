"""A split as rows: map-style, memory-mapped, each row knowing the file and line that it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

Row = Mapping[str, Any]


class Table(Protocol):
    """Rows of one split. A row's id is its index: the same on every rank and in every run."""

    name: str  # "train", "validation", "test"
    columns: Mapping[str, str]  # role -> column, as the recipe maps them

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row:
        """The row under its roles: {"text": ..., "label": ...}; other columns under their own names."""
        ...

    def __iter__(self) -> Iterator[Row]: ...

    def place(self, index: int) -> str:
        """Where row `index` came from: "train.jsonl:17" (1-based line) or "train.parquet row 16"."""
        ...


class Examples(Protocol):
    """Encoded examples of one split, ready for `collate`; index i is row id `self.ids[i]`.

    Examples that change with the epoch (augmented images) have an attribute `epoch: int` besides, which the loop sets
    before it starts the loaders of an epoch.
    """

    @property
    def ids(self) -> Sequence[int] | np.ndarray:
        """Row ids, ascending; rows skipped as bad are absent."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"id": row id, ...}: what the task's collate takes."""
        ...

    @property
    def costs(self) -> Sequence[int] | np.ndarray:
        """Work of each example in the task's own measure (tokens, pixels), for balance; same order as ids."""
        ...
