"""Readers of JSON lines, CSV and TSV. A bad line becomes a BadRow with its line number, and reading continues."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

NumberedRow = tuple[int, dict[str, Any] | BadRow]  # (1-based line on which the row starts, row)


class Reader(Protocol):
    """A function that reads the rows of a file."""

    def __call__(self, path: Path, source: SourceSection) -> Iterator[NumberedRow]:
        """Yield (line, row) for every row, with a BadRow in place of a row that cannot be read.

        Raises: UserError if the file as a whole cannot be read.
        """
        ...


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading bytes, decompressed if its name ends in .gz. Raises: UserError if it cannot be opened."""
    try:
        return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """The UserError for a file that cannot be read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"cannot be read: {reason}", where=str(path), remedy="Check the path and its permissions.")


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(1-based line number, line with its end) of a file, without a UTF-8 byte order mark.

    Raises: UserError for a read error, and for UTF-16 and UTF-32, which cannot be split into lines as bytes.
    """
    with open_binary(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise UserError(
                            "is UTF-16, not UTF-8",
                            where=f"{path}:1",
                            remedy="Convert it: iconv -f utf-16 -t utf-8 OLD > NEW",
                        )
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line
        except (OSError, EOFError) as error:  # a disk error, a truncated .gz
            raise unreadable(path, error) from error


def decode(line: bytes) -> str:
    """Decode a line as UTF-8. Raises: BadRow with the first invalid byte."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise BadRow(
            f"not UTF-8 (byte 0x{byte:02x} at column {error.start + 1}); convert the file, for example with "
            "iconv -f latin1 -t utf-8"
        ) from error


def parse_object(text: str) -> dict[str, Any]:
    """Parse one JSON object. Raises: BadRow with the error and its column."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BadRow("not JSON: nested too deeply") from error
    if not isinstance(value, dict):
        raise BadRow(f"not a JSON object, but {json_kind(value)}")
    return value


def json_kind(value: Any) -> str:
    """The JSON name of a Python value's type, with an article: "a list", "null"."""
    names = {"list": "a list", "str": "a string", "NoneType": "null", "bool": "true or false"}
    return names.get(type(value).__name__, "a number")


def read_jsonl(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """Read JSON lines: one object per line; blank lines are skipped."""
    for number, line in numbered_lines(path):
        if not line.isspace():
            try:
                yield number, parse_object(decode(line))
            except BadRow as bad:
                yield number, bad


class _DecodedLines:
    """Iterator over decoded lines, for csv.reader. Unlike a generator, it can continue after a line that raised."""

    def __init__(self, path: Path) -> None:
        self._lines = numbered_lines(path)
        self.number = 0

    def __iter__(self) -> _DecodedLines:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        return decode(line)


def read_csv(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """Read CSV (RFC 4180): quoted cells may contain commas and newlines. All values are text; empty cells are left out.

    The separator is a comma, unless the first line contains no comma but semicolons or tabs.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default is 128 KiB
    lines = _DecodedLines(path)
    reader = csv.reader(lines, delimiter=_separator(path, source), strict=True)
    header: list[str] | None = _checked_header(list(source.header), path, 1) if source.header else None
    while True:
        start = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except BadRow as bad:
            yield lines.number, bad
            continue
        except csv.Error as error:
            reason = "a quote is never closed" if "end of data" in str(error) else str(error)
            yield start, BadRow(f"not CSV: {reason}")
            continue
        if not cells or cells == [" " * len(cells[0])]:  # a blank line
            continue
        if header is None:
            header = _checked_header(cells, path, start)
        else:
            yield start, _row(header, cells)


def read_tsv(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """Read TSV: a tab always ends a cell and a newline a row. The quotes around a fully quoted cell are removed."""
    header: list[str] | None = _checked_header(list(source.header), path, 1) if source.header else None
    for number, line in numbered_lines(path):
        if line.strip(b" \r\n") == b"":
            continue
        try:
            cells = [_unquoted(cell) for cell in decode(line).rstrip("\r\n").split("\t")]
        except BadRow as bad:
            yield number, bad
            continue
        if header is None:
            header = _checked_header(cells, path, number)
        else:
            yield number, _row(header, cells)


QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def _unquoted(cell: str) -> str:
    match = QUOTED.fullmatch(cell) if cell[:1] == '"' else None
    return match[1].replace('""', '"') if match else cell


def _separator(path: Path, source: SourceSection) -> str:
    if len(source.header) == 1:
        return ","
    first = next((line for _, line in numbered_lines(path) if not line.isspace()), b"")
    return next((mark for mark in ",;\t" if mark.encode() in first), ",")


def _checked_header(names: list[str], path: Path, line: int) -> list[str]:
    """Column names, with "column_<n>" for those without a name. Raises: UserError for duplicates."""
    names = [name.strip() or f"column_{index}" for index, name in enumerate(names, start=1)]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise UserError(f"two columns are named {duplicate!r}", where=f"{path}:{line}", remedy="Rename one of them.")
    return names


def _row(header: list[str], cells: list[str]) -> dict[str, Any] | BadRow:
    if len(cells) != len(header):
        return BadRow(f"{len(cells)} cells, but the header has {len(header)} columns")
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
