"""A quick look into a file: its columns, from the header, the footer or the first rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from finetune.data.bad_rows import BadRow
from finetune.data.columns import SAMPLED
from finetune.data.formats import coco
from finetune.data.formats.lines import NumberedRow
from finetune.data.sources.image_folder import COLUMNS, look_at
from finetune.data.sources.locate import READERS, shown
from finetune.errors import UserError
from finetune.recipe.data import SourceSection


def columns_of(path: Path, form: str, source: SourceSection) -> list[str]:
    """The columns of a file, from its header, footer or first rows.

    Raises: UserError for a file that is empty, unreadable, or not of its form.
    """
    if form == "imagefolder":
        look_at(path)
        return list(COLUMNS)
    if form == "coco":  # its columns are known, and it can only be read whole
        return list(coco.COLUMNS)
    if form in READERS:
        seen, bad = seen_columns(READERS[form](path, source), SAMPLED)
        if not seen and bad:
            raise UserError(
                f"not one of the first rows can be read: {bad[0][1]}",
                where=f"{shown(path)}:{bad[0][0]}",
                remedy=f"Is it {form}? Say what it is with `format:`.",
            )
        empty = not seen
    else:
        from finetune.data.sources.arrow_rows import map_arrow, parquet_schema

        if form == "parquet":
            schema, count = parquet_schema(path)
            seen, empty = list(schema.names), not count
        else:
            table = map_arrow([path])
            seen, empty = table.column_names, not table.num_rows
    if empty:
        raise UserError("is empty", where=shown(path), remedy="Give a file with rows, or take it off the recipe.")
    return seen


def seen_columns(rows: Iterator[NumberedRow], count: int) -> tuple[list[str], list[tuple[int, str]]]:
    """(columns in order of first sight, [(line, why)] of bad rows) in the first `count` rows."""
    columns: dict[str, None] = {}
    bad: list[tuple[int, str]] = []
    for line, row in islice(rows, count):
        if isinstance(row, BadRow):
            bad.append((line, str(row)))
        else:
            columns.update(dict.fromkeys(row))
    return list(columns), bad
