"""Finds the column names of a file, and what a user should know about it, without reading all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRow, BlankLine
from finetune.data.columns import SAMPLED_ROWS
from finetune.data.formats.encodings import open_utf8
from finetune.data.formats.lines import NumberedRow, describe_number
from finetune.data.formats.registry import READERS
from finetune.data.sources.image_folder import COLUMNS, find_classes
from finetune.data.sources.located import display_path
from finetune.errors import EmptyData, UserError
from finetune.recipe.data import SourceSection
from finetune.recipe.formats import FORMATS
from finetune.recipe.targets import load_target

if TYPE_CHECKING:
    import pyarrow as pa

MAX_DEPTH = 3  # of dotted names
MAX_NESTED = 200  # dotted names that are kept


@dataclass(frozen=True)
class Head:
    """columns: their names, in order. nested: dotted names of values inside of them, such as translation.en.

    notes: what to report of how the file is read. hint: what to do if a column is not found, or "".
    """

    columns: list[str]
    nested: list[str]
    notes: list[str]
    hint: str = ""


def head_of(path: Path, file_format: str, source: SourceSection) -> Head:
    """The head of a file: its header, its footer or its first 1,000 rows.

    file_format: the format that `locate` returned.
    Raises: UserError for a file that is empty, unreadable, or not of this format.
    """
    if file_format == "imagefolder":
        find_classes(path)
        return Head(list(COLUMNS), [], [])
    spec = FORMATS[file_format]
    if spec.columns:  # known, where a file cannot be read in part
        return Head(list(spec.columns), [], load_target(spec.notes)(path, source) if spec.notes else [])
    if not spec.reader:
        return _typed_head(path, file_format)
    columns, nested, bad = sample_columns(READERS[file_format](path, source), SAMPLED_ROWS)
    if not columns and bad:
        raise UserError(
            f"none of the first rows can be read: {bad[0][1]}",
            where=f"{display_path(path)}{describe_number(bad[0][0])}",
            remedy=_other_format(path, file_format, source),
        )
    if not columns:
        raise _empty(path)
    if spec.header:  # a column may be empty in the first rows
        columns = load_target(spec.header)(path, source)
    notes = load_target(spec.notes)(path, source) if spec.notes else []
    return Head(columns, nested, notes, load_target(spec.hint)(path, source) if spec.hint else "")


def columns_of(path: Path, file_format: str, source: SourceSection) -> list[str]:
    """The columns of a file. Raises: UserError as head_of does."""
    return head_of(path, file_format, source).columns


def _typed_head(path: Path, file_format: str) -> Head:
    from finetune.data.sources.arrow_files import map_arrow, parquet_schema

    if file_format == "parquet":
        schema, count = parquet_schema(path)
    else:
        table = map_arrow([path])
        schema, count = table.schema, table.num_rows
    if not count:
        raise _empty(path)
    return Head(list(schema.names), nested_names(schema), [])


def nested_names(schema: pa.Schema) -> list[str]:
    """The dotted names of the fields of structs."""
    return list(islice(_fields(schema, "", 1), MAX_NESTED))


def _fields(fields: Any, prefix: str, depth: int) -> Iterator[str]:
    import pyarrow as pa

    for field in fields:
        if prefix:
            yield prefix + field.name
        if pa.types.is_struct(field.type) and depth < MAX_DEPTH:
            inner = [field.type.field(index) for index in range(field.type.num_fields)]
            yield from _fields(inner, f"{prefix}{field.name}.", depth + 1)


def _empty(path: Path) -> UserError:
    return EmptyData("is empty", where=display_path(path), remedy="Give a file with rows, or leave it out.")


def _other_format(path: Path, file_format: str, source: SourceSection) -> str:
    """The remedy for a file whose first rows cannot be read."""
    if file_format == "jsonl":
        with open_utf8(path, source.encoding) as file:
            start = file.read(4_096).decode("utf-8-sig", "replace").lstrip()
        first = start.partition("\n")[0].strip()
        whole = first[:1] == "[" and first[1:].strip() and first[-1:] == "]"  # lists, one per line
        if (start[:1] == "[" and not whole) or start[:2] in ("{\n", "{\r"):
            return "The file looks like JSON that is not one object per line: set `format: json`."
    return f"If the file is not {file_format}, set `format:`; otherwise fix it."


def sample_columns(rows: Iterator[NumberedRow], count: int) -> tuple[list[str], list[str], list[tuple[int, str]]]:
    """(columns in order of first occurrence, dotted names inside of them, [(number, reason)] of bad rows) in the first rows."""
    columns: dict[str, None] = {}
    nested: dict[str, None] = {}
    bad: list[tuple[int, str]] = []
    for number, row in islice(rows, count):
        if isinstance(row, BlankLine):
            continue
        if isinstance(row, BadRow):
            bad.append((number, str(row)))
            continue
        columns.update(dict.fromkeys(row))
        for name, value in row.items():
            if isinstance(value, dict) and len(nested) < MAX_NESTED:
                nested.update(dict.fromkeys(_dotted(value, name, 2)))
    return list(columns), list(nested), bad


def _dotted(value: Mapping[str, Any], prefix: str, depth: int) -> Iterator[str]:
    for name, inner in value.items():
        yield f"{prefix}.{name}"
        if isinstance(inner, dict) and depth < MAX_DEPTH:
            yield from _dotted(inner, f"{prefix}.{name}", depth + 1)
