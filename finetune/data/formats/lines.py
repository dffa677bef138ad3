"""Files as numbered lines, and the reader of JSON lines. A bad line becomes a BadRow with its line number."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from finetune.data.bad_rows import BadRow
from finetune.data.formats.compression import READ_ERRORS, unreadable, without_compression
from finetune.data.formats.encodings import UTF8, UTF8_MARK, decode, open_utf8
from finetune.data.formats.json_values import parse_object
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

MAX_LINE_BYTES = 1 << 28  # a longer line is a bad row, and never held in memory
NumberedRow = tuple[int, dict[str, Any] | BadRow]  # (number: see describe_number, row)
COUNTED_BYTES = 1 << 30  # of files whose lines are counted for a progress line


def describe_number(number: int) -> str:
    """What stands behind the name of a file for the place of a row: ":17" for line 17, where it starts; " row 16" for -17, a
    row that starts on a line with others; "" for 0, where the image that a row names is its place.
    """
    return f":{number}" if number > 0 else f" row {-1 - number}" if number else ""


class Reader(Protocol):
    """A function that reads the rows of a file."""

    def __call__(self, path: Path, source: SourceSection) -> Iterator[NumberedRow]:
        """Yield (line, row) for every row, with a BadRow in place of a row that cannot be read, and where a line is a row a
        BlankLine for each blank line that a row follows.

        Raises: UserError if the file as a whole cannot be read.
        """
        ...


class LongLine(bytes):
    """The start of a line of more than MAX_LINE_BYTES. Decoding it raises BadRow, as for any line that is not text."""

    def decode(self, encoding: str = UTF8, errors: str = "strict") -> str:
        if errors != "strict":
            return super().decode(encoding, errors)
        raise BadRow(f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB")


def count_lines(path: Path) -> int | None:
    """The lines of a file, at the speed of the disk; None of a compressed or a huge one, and where it cannot be read."""
    try:
        if without_compression(path) != path or path.stat().st_size > COUNTED_BYTES:
            return None
        lines, last = 0, b"\n"
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                lines, last = lines + block.count(b"\n"), block[-1:]
    except OSError:
        return None
    return lines + (last != b"\n")


def numbered_lines(path: Path, encoding: str = UTF8) -> Iterator[tuple[int, bytes]]:
    """(1-based line number, line with its end, in UTF-8) of a text file, without its byte order mark.

    Raises: UserError if the file cannot be read, or is not text.
    """
    with open_utf8(path, encoding) as file:
        try:
            for number, line in enumerate(_lines(file), start=1):
                yield number, line.removeprefix(UTF8_MARK) if number == 1 else line
        except READ_ERRORS as error:  # a disk error, a truncated .gz
            raise unreadable(path, error) from error
        except UnicodeError as error:  # UTF-16 and UTF-32, which cannot be read on after an error
            remedy = "Download or copy the file again if it is incomplete, or set `encoding:` to its encoding."
            raise UserError(f"cannot be decoded: {error}", where=str(path), remedy=remedy) from error


def _lines(file: BinaryIO) -> Iterator[bytes]:
    limit = MAX_LINE_BYTES
    for line in iter(partial(file.readline, limit), b""):
        if len(line) == limit and line[-1:] != b"\n":
            line = LongLine(line[:80])
            _skip_line(file)
        yield line


def _skip_line(file: BinaryIO) -> None:
    """Read to the end of the current line."""
    while (rest := file.readline(1 << 20)) and rest[-1:] != b"\n":
        pass


def read_jsonl(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """Read JSON lines: one object per line; blank lines are skipped."""
    for number, line in numbered_lines(path, source.encoding):
        if not line.isspace():
            yield number, _parse(line, source.encoding)


def read_jsonl_after(path: Path, source: SourceSection, skip: int) -> tuple[int, Iterator[NumberedRow]]:
    """(rows that were skipped, the rows after them). Lines that are skipped are not parsed.

    Fewer than `skip` where the file has no more. Raises: UserError if the file cannot be read.
    """
    lines = ((number, line) for number, line in numbered_lines(path, source.encoding) if not line.isspace())
    skipped = sum(1 for _ in islice(lines, skip))
    return skipped, ((number, _parse(line, source.encoding)) for number, line in lines)


def read_jsonl_between(
    path: Path, source: SourceSection, first: int, last: int, *, counted: list[int]
) -> Iterator[NumberedRow]:
    """The JSON lines of a UTF-8 file that start at bytes [first, last), numbered from 1.

    counted: at the end, its only item is the number of these lines, blank ones included.
    Raises: UserError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            if first:
                file.seek(first - 1)
                _skip_line(file)
            start = file.tell()
            lines = _lines(file)
            while start < last and (line := next(lines, None)) is not None:
                counted[0] += 1
                if start == 0:
                    line = line.removeprefix(UTF8_MARK)
                if not line.isspace():
                    yield counted[0], _parse(line, source.encoding)
                start = file.tell()
    except OSError as error:
        raise unreadable(path, error) from error


def _parse(line: bytes, encoding: str) -> dict[str, Any] | BadRow:
    try:
        return parse_object(decode(line, encoding))
    except BadRow as bad:
        cut = line[-1:] != b"\n" and str(bad).startswith("not JSON")
        return BadRow(f"{bad}; the file ends with this line, so it may be incomplete") if cut else bad
