"""Protocols of a split: `Table`, its rows and where each came from, and `Examples`, the rows encoded by a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

Row = Mapping[str, Any]


class Table(Protocol):
    """Rows of one split, map-style. The index of a row is its id: the same on every rank and in every run."""

    name: str  # "train", "validation", "test"
    columns: Mapping[str, str]  # role -> column

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row:
        """A row with roles as keys: {"text": ..., "label": ...}; unmapped columns keep their names."""
        ...

    def __iter__(self) -> Iterator[Row]: ...

    def place(self, index: int) -> str:
        """Where row `index` came from: "train.jsonl:17" (1-based line) or "train.parquet row 16"."""
        ...


def role_values(table: Table, role: str) -> Iterator[Any]:
    """The values of one role, None where a row has none; other columns, such as images, are not decoded if possible."""
    values = getattr(table, "values", None)
    return iter(values(role)) if values is not None else (row.get(role) for row in table)


def read_rows(table: Table, first: int, last: int) -> list[Row]:
    """Rows [first, last) of a table, in one piece if it can do that."""
    together = getattr(table, "rows_between", None)
    return together(first, last) if together is not None else [table[index] for index in range(first, last)]


def describe_table(table: Table) -> str:
    """What a table was made from, for people: "train: reviews.csv, more.csv"."""
    sources = getattr(table, "sources", ())
    return f"{table.name}: {', '.join(sources[:3])}{', ...' if len(sources) > 3 else ''}" if sources else table.name


class Examples(Protocol):
    """Encoded examples of one split, ready for `collate`; index i is row id `self.ids[i]`.

    Examples that change with the epoch (augmented images) also have an attribute `epoch: int`, which the training loop
    sets before it starts the loaders of an epoch.
    """

    @property
    def ids(self) -> Sequence[int] | np.ndarray:
        """Row ids, ascending; int [examples]. Bad rows that were skipped are absent."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"id": row id, ...}, as the task's `collate` expects."""
        ...

    @property
    def costs(self) -> Sequence[int] | np.ndarray:
        """Cost of each example in a unit of the task (tokens, pixels), for load balancing; same order as ids."""
        ...
