"""A table of rows in memory, for tests of what reads tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class MemoryTable:
    """Row i is located at "<name> row i"."""

    def __init__(self, name: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> None:
        self.name, self._rows = name, list(rows)
        self.columns: Mapping[str, str] = columns or {role: role for row in self._rows for role in row}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._rows[index]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._rows)

    def place(self, index: int) -> str:
        return f"{self.name} row {index}"
