"""The tables of a report: those of the best checkpoint where there are any."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from finetune.tracking.journal import list_tables, read_table
from finetune.tracking.report.pictures import SMALL, Thumbnails
from finetune.tracking.run import Run

MAX_TABLE_ROWS = 100
MANY_CLASSES = 20
PICTURE = "picture"  # the column of the places of pictures
MAX_CELL = 600  # characters of a text shown; predictions/ has the full text


@dataclass(frozen=True)
class Table:
    """A table of one evaluation. step: optimizer steps before it. note: which weights it is about, for people."""

    step: int
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""


def choose_tables(run: Run, best_step: int | None) -> dict[str, Table]:
    """One table of each name: of the best checkpoint if it has one, otherwise the latest. Damaged files are skipped.

    best_step: the step of the best checkpoint, None if no checkpoint is the best. The test split is evaluated with the
    weights of the best checkpoint, whatever the step of its tables is.
    """
    chosen: dict[str, Table] = {}
    for path, name, step in list_tables(run.tables):
        if name in chosen and chosen[name].step == best_step:
            continue
        try:
            chosen[name] = Table(step, *read_table(path))
        except (OSError, ValueError):
            continue
    return {name: replace(table, note=_note(name, table.step, best_step)) for name, table in chosen.items()}


def _note(name: str, step: int, best_step: int | None) -> str:
    if best_step is not None and (step == best_step or name.startswith("test_")):
        return f"best checkpoint (step {best_step:,})"
    return f"latest evaluation (step {step:,})"


def drop_class_numbers(table: Table | None) -> Table | None:
    """Without the numbers of classes and tags, where their names are there too, the places of pictures in the run, and a text
    that is there twice.
    """
    if table is None:
        return table
    there = set(table.columns)
    hidden = {PICTURE}
    if "predicted" in there and {"label", "text"} & there:
        hidden |= {"prediction", "reference", "tags", "reference_tags"}
    if "target" in there:
        hidden.add("reference_text")
    keep = [index for index, name in enumerate(table.columns) if name not in hidden]
    columns = [table.columns[index] for index in keep]
    return replace(table, columns=columns, rows=[[row[index] for index in keep] for row in table.rows])


def weakest_first(table: Table | None) -> Table | None:
    """Of a table of many classes, those of the lowest f1 first, which the note then says."""
    if table is None or "f1" not in table.columns or len(table.rows) <= MANY_CLASSES:
        return table
    at = table.columns.index("f1")
    rows = sorted(table.rows, key=lambda row: row[at] if isinstance(row[at], (int, float)) else 1.0)
    return replace(table, rows=rows, note=f"{table.note}; lowest f1 first")


def clip(table: Table | None) -> dict[str, Any] | None:
    """The first rows, with long texts shortened."""
    if table is None or not table.rows:
        return None
    columns, rows = table.columns, table.rows
    cells = [
        [shorten(cell) if isinstance(cell, (str, list, dict)) else cell for cell in row]
        for row in rows[:MAX_TABLE_ROWS]
    ]
    more = max(0, len(rows) - MAX_TABLE_ROWS)
    return {"columns": columns, "rows": cells, "more": more, "note": table.note, "pictures": [], "missing": 0}


def with_pictures(table: Table | None, thumbnails: Thumbnails) -> dict[str, Any] | None:
    """`clip`, with "pictures": a thumbnail of each row, where the table names any; "" for those that have none, of which
    "missing" are named, but not shown.
    """
    clipped = clip(drop_class_numbers(table))
    if clipped is None or table is None or PICTURE not in table.columns:
        return clipped
    at = table.columns.index(PICTURE)
    names = [row[at] for row in table.rows[:MAX_TABLE_ROWS]]
    pictures = [thumbnails.make(name, SMALL) for name in names]
    missing = sum(bool(name) and not picture for name, picture in zip(names, pictures, strict=True))
    return {**clipped, "pictures": pictures if any(pictures) else [], "missing": missing}


def shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_CELL else text[:MAX_CELL] + " …"
