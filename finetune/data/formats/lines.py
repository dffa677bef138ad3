"""Readers of text files, line by line: a bad line is one bad row, told with its number, and the rest is read on."""

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

NumberedRow = tuple[int, dict[str, Any] | BadRow]  # 1-based line where the row starts


class Reader(Protocol):
    def __call__(self, path: Path, source: SourceSection) -> Iterator[NumberedRow]:
        """Every row of a file with its line, or, in place of the row, the BadRow that says why there is none.

        Raises: UserError if the file as a whole cannot be read.
        """
        ...


def open_binary(path: Path) -> BinaryIO:
    """The file's bytes, unpacked if its name ends in .gz. Raises: UserError that says why it cannot be opened."""
    try:
        return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """A file that cannot be read, as a UserError."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"cannot be read: {reason}", where=str(path), remedy="Check the path and its permissions.")


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(1-based number, line with its end); a UTF-8 byte order mark is taken off.

    Raises: UserError for UTF-16 and UTF-32, whose lines cannot be told apart byte by byte, and for a read that fails.
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
    """UTF-8 text. Raises: BadRow with the first byte that is not."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise BadRow(
            f"not UTF-8 (byte 0x{byte:02x} at column {error.start + 1}); convert the file, such as by "
            "iconv -f latin1 -t utf-8"
        ) from error


def parse_object(text: str) -> dict[str, Any]:
    """One JSON object. Raises: BadRow that says what is wrong at which column."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BadRow("not JSON: nested too deeply") from error
    if not isinstance(value, dict):
        raise BadRow(f"not a JSON object but {json_kind(value)}")
    return value


def json_kind(value: Any) -> str:
    """What JSON calls a Python value's type, with its article."""
    names = {"list": "a list", "str": "a string", "NoneType": "null", "bool": "true or false"}
    return names.get(type(value).__name__, "a number")


def read_jsonl(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """One JSON object a line; blank lines are passed over."""
    for number, line in numbered_lines(path):
        if not line.isspace():
            try:
                yield number, parse_object(decode(line))
            except BadRow as bad:
                yield number, bad


class _DecodedLines:
    """Lines for csv.reader. An iterator, not a generator: it goes on after a line that raised."""

    def __init__(self, path: Path) -> None:
        self._lines = numbered_lines(path)
        self.number = 0

    def __iter__(self) -> _DecodedLines:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        return decode(line)


def read_csv(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """RFC 4180: quotes may hold commas and newlines. Every value is text, as written; an empty cell is no value.

    The separator is a comma, unless the first line has none but semicolons or tabs.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses a text of 128 KiB
    lines = _DecodedLines(path)
    reader = csv.reader(lines, delimiter=_separator(path, source), strict=True)
    header: list[str] | None = _checked(list(source.header), path, 1) if source.header else None
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
            why = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
            yield start, BadRow(f"not CSV: {why}")
            continue
        if not cells or cells == [" " * len(cells[0])]:  # a blank line
            continue
        if header is None:
            header = _checked(cells, path, start)
        else:
            yield start, _row(header, cells)


def read_tsv(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """A tab always ends a cell, a newline always ends a row. A cell wholly in quotes loses them."""
    header: list[str] | None = _checked(list(source.header), path, 1) if source.header else None
    for number, line in numbered_lines(path):
        if line.strip(b" \r\n") == b"":
            continue
        try:
            cells = [_unquoted(cell) for cell in decode(line).rstrip("\r\n").split("\t")]
        except BadRow as bad:
            yield number, bad
            continue
        if header is None:
            header = _checked(cells, path, number)
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


def _checked(names: list[str], path: Path, line: int) -> list[str]:
    """Column names; those without a name get a number. Raises: UserError if two are alike."""
    names = [name.strip() or f"column_{index}" for index, name in enumerate(names, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two columns are named {twice!r}", where=f"{path}:{line}", remedy="Rename one of them.")
    return names


def _row(header: list[str], cells: list[str]) -> dict[str, Any] | BadRow:
    if len(cells) != len(header):
        return BadRow(f"{len(cells)} cells where the header has {len(header)} columns")
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
