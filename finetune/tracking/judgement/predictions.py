"""The predictions of one evaluation as arrays, read back from predictions/<split>-step-<step>.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.metrics.catalogue import CATALOGUE
from finetune.metrics.inputs import column_type
from finetune.recipe.json_file import parse_json

MAX_BYTES = 1 << 30  # a larger file is not read for a report
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Predictions:
    """columns: field -> [examples, ...], as the metrics take them (metrics/catalogue.py). labels: names of the classes, None
    for a task without. multi_label: predictions and references are 0/1 lists.
    """

    columns: Columns
    labels: list[str] | None
    multi_label: bool

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def prediction_fields(metrics: Iterable[str]) -> list[str]:
    """What the metrics read of a prediction, and what judging it needs besides."""
    fields = {field for name in metrics if name in CATALOGUE for field in CATALOGUE[name].fields}
    return sorted(fields | {"loss", "weight", "prediction", "reference", "scores", "value", "target"})


def read_predictions(
    path: Path, fields: Sequence[str], labels: Sequence[str], *, max_bytes: int = MAX_BYTES
) -> Predictions | None:
    """The fields that the file has in every row; None where there is no file, or it is damaged or too large. A text under the
    name of a number, such as the `target` of sequence to sequence, is another field.

    labels: names of the classes; () for a task without.
    """
    try:
        if path.stat().st_size > max_bytes:
            return None
        rows = _read(path, fields)
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    if not rows:
        return None
    present = [name for name in fields if all(name in row for row in rows)]
    multi_label = "prediction" in present and isinstance(rows[0]["prediction"], list)
    present = [
        name for name in present if column_type(name, multi_label) == "object" or not isinstance(rows[0][name], str)
    ]
    try:
        columns = {name: _column(name, [row[name] for row in rows], multi_label) for name in present}
    except (ValueError, TypeError, OverflowError):  # rows of different shapes
        return None
    return Predictions(columns, list(labels) or None, multi_label)


def _read(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        rows = [parse_json(line) for line in file]
    return [{name: row[name] for name in fields if name in row} for row in rows]


def _column(name: str, values: list[Any], multi_label: bool) -> np.ndarray:
    dtype = column_type(name, multi_label)
    if dtype != "object":
        return np.asarray(values, dtype)
    column = np.empty(len(values), object)
    column[:] = values
    return column
