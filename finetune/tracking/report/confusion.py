"""The confusion matrix at any number of classes: a table of numbers, a map of small cells, and the most frequent confusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.tracking.report.tables import Table, clip

MAX_TABLE = 16  # classes shown as a table of numbers
MAX_MAP = 200  # classes drawn as a map
MAX_CELLS = 5_000  # cells of a map that are drawn, the largest ones
MAX_PAIRS = 15
MAX_COUNT = 1 << 53


@dataclass(frozen=True)
class Pair:
    """Examples of one class that were taken for another. share: of the examples of the true class."""

    true: str
    predicted: str
    count: int
    share: float


def confusion_cells(table: Table | None) -> dict[str, Any] | None:
    """What the page draws: `form` is table, map, pairs (too many classes) or other (several labels); `pairs`.

    Raises: ValueError for a cell that is no count.
    """
    if table is None or not table.rows:
        return None
    columns, rows = table.columns, table.rows
    if columns[0] != "reference" or len(columns) != len(rows) + 1:
        return {**(clip(table) or {}), "form": "other", "pairs": []}
    for at, (_, *counts) in enumerate(rows):
        if not all(_is_count(count) for count in counts):
            raise ValueError(f"row {at + 1} has a cell that is no count")
    pairs, found = _pairs(columns[1:], rows), {"columns": columns[1:], "note": table.note}
    if len(rows) > MAX_MAP:
        return {**found, "form": "pairs", "pairs": pairs, "classes": len(rows)}
    if len(rows) > MAX_TABLE:
        return {**found, **_map(rows), "pairs": pairs, "classes": len(rows)}
    return {**found, "form": "table", "pairs": [], "rows": [_shaded(index, row) for index, row in enumerate(rows)]}


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < MAX_COUNT


def _shaded(index: int, row: list[Any]) -> dict[str, Any]:
    name, *counts = row
    total = sum(counts)
    cells = [{"count": n, "share": n / total if total else 0.0, "right": index == at} for at, n in enumerate(counts)]
    return {"name": name, "cells": cells, "total": total}


def _map(rows: list[list[Any]]) -> dict[str, Any]:
    """Cells of a map that are not empty. more: how many of the smallest are left out."""
    cells = []
    for at, (_, *counts) in enumerate(rows):
        total = sum(counts)
        cells += [
            {"row": at, "column": over, "count": count, "share": count / total, "right": at == over}
            for over, count in enumerate(counts)
            if count
        ]
    cells.sort(key=lambda cell: -cell["count"])
    return {"form": "map", "cells": cells[:MAX_CELLS], "more": max(0, len(cells) - MAX_CELLS)}


def _pairs(names: list[str], rows: list[list[Any]]) -> list[Pair]:
    found = []
    for at, (name, *counts) in enumerate(rows):
        total = sum(counts)
        found += [
            Pair(str(name), str(names[over]), count, count / total)
            for over, count in enumerate(counts)
            if count and over != at
        ]
    return sorted(found, key=lambda pair: (-pair.count, -pair.share))[:MAX_PAIRS]
