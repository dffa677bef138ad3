"""Finds the column names of a file without reading all of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from finetune.data.bad_rows import BadRow
from finetune.data.columns import SAMPLED_ROWS
from finetune.data.formats import coco
from finetune.data.formats.lines import NumberedRow
from finetune.data.formats.registry import READERS
from finetune.data.sources.image_folder import COLUMNS, find_classes
from finetune.data.sources.locate import display_path
from finetune.errors import UserError
from finetune.recipe.data import SourceSection


def columns_of(path: Path, file_format: str, source: SourceSection) -> list[str]:
    """The columns of a file, from its header, its footer or its first 1,000 rows.

    file_format: the format that `locate` returned.
    Raises: UserError for a file that is empty, unreadable, or not of this format.
    """
    if file_format == "imagefolder":
        find_classes(path)
        return list(COLUMNS)
    if file_format == "coco":  # its columns are known, and it cannot be read in part
        return list(coco.COLUMNS)
    if file_format in READERS:
        columns, bad = sample_columns(READERS[file_format](path, source), SAMPLED_ROWS)
        if not columns and bad:
            raise UserError(
                f"none of the first rows can be read: {bad[0][1]}",
                where=f"{display_path(path)}:{bad[0][0]}",
                remedy=f"If the file is not {file_format}, set `format:`.",
            )
        empty = not columns
    else:
        from finetune.data.sources.arrow_rows import map_arrow, parquet_schema

        if file_format == "parquet":
            schema, count = parquet_schema(path)
            columns, empty = list(schema.names), not count
        else:
            table = map_arrow([path])
            columns, empty = table.column_names, not table.num_rows
    if empty:
        raise UserError(
            "is empty", where=display_path(path), remedy="Give a file with rows, or remove it from the recipe."
        )
    return columns


def sample_columns(rows: Iterator[NumberedRow], count: int) -> tuple[list[str], list[tuple[int, str]]]:
    """(columns in order of first occurrence, [(line, reason)] of bad rows) in the first `count` rows."""
    columns: dict[str, None] = {}
    bad: list[tuple[int, str]] = []
    for line, row in islice(rows, count):
        if isinstance(row, BadRow):
            bad.append((line, str(row)))
        else:
            columns.update(dict.fromkeys(row))
    return list(columns), bad
