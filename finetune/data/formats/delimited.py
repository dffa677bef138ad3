"""Readers of CSV and TSV. The first line is the header, or an error: no other row ever takes its place."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow, BlankLine
from finetune.data.formats.encodings import decode
from finetune.data.formats.lines import NumberedRow, numbered_lines
from finetune.errors import UserError
from finetune.recipe.data import SourceSection
from finetune.units import format_number

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}  # in order of preference
MAX_CELL_CHARS = 1 << 26  # of a csv cell; bounds the memory that a quote which is never closed takes
MAX_COLUMNS = 100_000  # each is a word in every message on columns, and a key of every row
SAMPLED_LINES = 50  # read to find the separator
MIN_SWALLOWED = 2  # lines within a cell that look like rows of their own
QUOTED = re.compile(r'"((?:[^"]|"")*)"')


class _DecodedLines:
    """Iterator over decoded lines, for csv.reader. number, last: of the last line, and its text. bad: (number, why) if a line
    is not text.

    A bad line is passed on with replacement characters, so that the end of its row is found.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self._lines, self._encoding = numbered_lines(path, encoding), encoding
        self.number, self.last = 0, ""
        self.bad: tuple[int, BadRow] | None = None

    def __iter__(self) -> _DecodedLines:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        try:
            self.last = decode(line, self._encoding)
        except BadRow as bad:
            self.bad = self.bad or (self.number, bad)
            self.last = line.decode("utf-8", "replace")
        return self.last


def read_csv(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """Read CSV (RFC 4180): quoted cells may contain separators and newlines. All values are text; empty cells are left out.

    Raises: UserError if the file or its header cannot be read.
    """
    csv.field_size_limit(MAX_CELL_CHARS)  # the default is 128 KiB
    separator = csv_separator(path, source)
    lines = _DecodedLines(path, source.encoding)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header = check_header(source.header, path, 1) if source.header else None
    blank: list[int] = []
    while True:
        start, fault = lines.number + 1, None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells, fault = [], (start, BadRow(f"not CSV: {_csv_error(error, start, lines.number)}"))
        if lines.bad is not None:
            fault, lines.bad = lines.bad, None
        if fault is None and _is_blank(cells, lines.last, header):
            blank.append(start)
            continue
        if header is None:
            header, blank = check_header(cells, path, start, fault), []
            continue
        yield from _blank_lines(blank, header)
        if fault is not None:
            yield fault
        else:
            yield start, as_row(header, cells, separator, lines.number - start)


def _is_blank(cells: Sequence[str], line: str, header: Sequence[str] | None) -> bool:
    """Whether a row is a blank line. In a file of one column `""` is a row: csv.writer and pandas write an empty cell so."""
    if cells and cells != [" " * len(cells[0])]:
        return False
    return not (header is not None and len(header) == 1 and '"' in line)


def _blank_lines(blank: list[int], header: Sequence[str]) -> Iterator[NumberedRow]:
    """Those before a row, of a file of one column: spreadsheets write an empty cell so. Forgets them."""
    if len(header) == 1:
        yield from ((number, BlankLine()) for number in blank)
    blank.clear()


def _csv_error(error: csv.Error, start: int, end: int) -> str:
    """What is wrong with the row in the lines from `start` to `end`."""
    others = end - start
    swallowed = f"the {others} lines after it" if others > 1 else "the line after it"
    if "end of data" in str(error):
        return "a quote is never closed" + (f", and takes in {swallowed}, to the end of the file" if others else "")
    if "field larger" in str(error):
        return f"a cell of more than {MAX_CELL_CHARS:,} characters; probably a quote is not closed; it takes in {swallowed}"
    if "new-line character" in str(error):
        return (
            "a carriage return stands alone, without a newline; if all lines end so, as old Macs wrote them, convert the "
            "file: tr '\\r' '\\n'"
        )
    return str(error) + (f"; a quote that is not closed may have taken in {swallowed}" if others else "")


def read_tsv(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """Read TSV: a tab always ends a cell and a newline a row. The quotes around a fully quoted cell are removed.

    Raises: UserError if the file or its header cannot be read.
    """
    encoding = source.encoding
    header = check_header(source.header, path, 1) if source.header else None
    blank: list[int] = []
    for number, line in numbered_lines(path, encoding):
        if line.strip(b" \r\n") == b"":
            blank.append(number)
            continue
        cells, fault = [], None
        try:
            cells = [_unquoted(cell) for cell in decode(line, encoding).rstrip("\r\n").split("\t")]
        except BadRow as bad:
            fault = number, bad
        if header is None:
            header, blank = check_header(cells, path, number, fault), []
            continue
        yield from _blank_lines(blank, header)
        if fault is not None:
            yield fault
        else:
            yield number, as_row(header, cells, "\t", 0)


def _unquoted(cell: str) -> str:
    match = QUOTED.fullmatch(cell) if cell[:1] == '"' else None
    return match[1].replace('""', '"') if match else cell


def as_row(header: Sequence[str], cells: Sequence[str], separator: str, more_lines: int) -> dict[str, Any] | BadRow:
    """The cells under their names. more_lines: lines of the row after its first one."""
    if len(cells) != len(header):
        spans = f" (it spans {more_lines + 1} lines)" if more_lines else ""
        return BadRow(
            f"{format_number(len(cells), 'cell')}, but the header has {format_number(len(header), 'column')}{spans}"
        )
    if more_lines > MIN_SWALLOWED and (count := _swallowed(cells, len(header), separator)):
        return BadRow(
            f"a quote opens here and closes {more_lines} lines later; the {count} lines between look like rows"
        )
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}


def _swallowed(cells: Sequence[str], num_columns: int, separator: str) -> int:
    """Number of lines in a cell if each has as many cells as the header, unlike text, whose commas precede spaces."""
    for cell in cells:
        inner = cell.split("\n")[1:-1]
        if num_columns > 1 and len(inner) >= MIN_SWALLOWED:
            separators = {line.count(separator) - line.count(f"{separator} ") for line in inner}
            if separators == {num_columns - 1}:
                return len(inner)
    return 0


def check_header(names: Sequence[str], path: Path, line: int, fault: tuple[int, BadRow] | None = None) -> list[str]:
    """Column names without spaces around them, "column_<n>" for those without a name.

    fault: (line, why) if the header cannot be read. Raises: UserError for a fault and for duplicates.
    """
    if fault is not None:
        raise UserError(
            f"the header cannot be read: {fault[1]}",
            where=f"{path}:{fault[0]}",
            remedy="If the file has no header, name the columns with `header:`.",
        )
    names = [str(name).strip() or f"column_{index}" for index, name in enumerate(names, start=1)]
    if len(names) > MAX_COLUMNS:
        raise UserError(
            f"the header has {len(names):,} columns; {MAX_COLUMNS:,} are read at most",
            where=f"{path}:{line}",
            remedy="Keep the columns that are trained on.",
        )
    duplicate = next((name for name, count in Counter(names).items() if count > 1), None)
    if duplicate is not None:
        raise UserError(f"two columns are named {duplicate!r}", where=f"{path}:{line}", remedy="Rename one of them.")
    return names


def csv_separator(path: Path, source: SourceSection) -> str:
    """The separator of a csv file: of those in the header, outside of quotes, the first that divides all rows alike.

    Raises: UserError if the file cannot be read.
    """
    lines = numbered_lines(path, source.encoding)
    sample = [line.decode("utf-8", "replace") for _, line in islice(lines, SAMPLED_LINES) if not line.isspace()]
    width = len(source.header)
    first = QUOTED.sub("", sample[0]) if sample else ""
    candidates = [mark for mark in SEPARATORS if mark in first]
    if width == 1 or not candidates:
        return ","
    fitting = [mark for mark in candidates if _divides(sample, mark, width)] if len(candidates) > 1 else candidates
    return (fitting or candidates)[0]


def _divides(sample: Sequence[str], separator: str, width: int) -> bool:
    """Whether a separator gives all sampled rows the same number of cells, at least 2. width: that number; 0: any."""
    widths = {width} if width else set()
    reader = csv.reader(sample, delimiter=separator, strict=True)
    try:
        widths.update(len(row) for row in reader if row)
    except csv.Error as error:
        if "end of data" not in str(error):  # the sample may end within a row
            return False
    return len(widths) == 1 and min(widths) > 1


def csv_columns(path: Path, source: SourceSection) -> list[str]:
    """The names of the columns of a csv file that `read_csv` can read."""
    return _columns(path, source, csv_separator(path, source))


def tsv_columns(path: Path, source: SourceSection) -> list[str]:
    """The names of the columns of a tsv file that `read_tsv` can read."""
    return _columns(path, source, "\t")


def _columns(path: Path, source: SourceSection, separator: str) -> list[str]:
    return check_header(source.header or first_rows(path, source, separator)[0], path, 1)


def first_rows(path: Path, source: SourceSection, separator: str) -> tuple[list[str], list[str]]:
    """The first two rows, without blank lines: [] where there is none, or where it cannot be read."""
    lines = (
        line.decode("utf-8", "replace") for _, line in numbered_lines(path, source.encoding) if line.strip(b" \r\n")
    )
    if separator == "\t":
        rows = ([_unquoted(cell) for cell in line.rstrip("\r\n").split("\t")] for line in lines)
        return next(rows, []), next(rows, [])
    read = csv.reader(lines, delimiter=separator)
    found: list[list[str]] = []
    with suppress(csv.Error):
        found = [*found, *islice(read, 1)]
        found = [*found, *islice(read, 1)]
    return (*found, [], [])[0], (*found, [], [])[1]
