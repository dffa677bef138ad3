"""Streaming reader of .json files: a list of rows, {"data": [rows]}, or a sequence of objects."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.formats.compression import READ_ERRORS, unreadable
from finetune.data.formats.encodings import encoding_hint, open_utf8
from finetune.data.formats.json_values import DECODER, as_row, json_error, parse_object
from finetune.data.formats.lines import NumberedRow, numbered_lines, read_jsonl
from finetune.data.split_names import split_of
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

CHUNK_CHARS = 1 << 20  # read at a time
MAX_ROW_CHARS = 1 << 28  # of one row; limits how far a file that is not JSON is read
SPACE = re.compile(r"[ \t\r\n]*")
NUMBER = re.compile(r"[-+.0-9eE]*")
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|["\[\]{}]', re.DOTALL)  # a quote alone: the string goes on after the window
DEPTHS = {"[": 1, "{": 1, "]": -1, "}": -1}
DATA_FIRST = re.compile(r'\{[ \t\r\n]*"data"[ \t\r\n]*:[ \t\r\n]*\[')


MAX_SKIPPED_DEPTH = 1 << 20  # of a value that cannot be parsed, but whose end is looked for


def read_json(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """The rows of a JSON file with the line on which each starts, or their number if they share one. Holds one row in
    memory, not the file.

    Raises: UserError with line and column of the first syntax error, because rows after it cannot be found.
    """
    text = _JsonStream(path, source.encoding)
    text.skip_space()
    if text.skip(DATA_FIRST) or text.skip(re.compile(r"\[")):
        yield from _elements(text)
    elif _is_json_lines(path, source.encoding):
        yield from read_jsonl(path, source)
    else:
        yield from _objects(text, path)


def _is_json_lines(path: Path, encoding: str) -> bool:
    """Whether the first non-blank line is a complete object, and not the only one: JSON lines in a file named .json."""
    lines = (line for _, line in numbered_lines(path, encoding) if not line.isspace())
    try:
        return "data" not in parse_object(next(lines, b"").decode("utf-8")) and next(lines, None) is not None
    except (BadRow, UnicodeDecodeError):
        return False


def _elements(text: _JsonStream) -> Iterator[NumberedRow]:
    """The elements of a list whose opening bracket has been read."""
    text.skip_space()
    before, index = 0, 0
    while not text.at("]"):
        line = text.line
        yield (line if line != before else -1 - index), text.row()
        before, index = line, index + 1
        text.skip_space()
        if text.at(","):
            text.advance(1)
            text.skip_space()
        elif not text.at("]"):
            raise text.fault("expected ',' or ']' after a row")


def _objects(text: _JsonStream, path: Path) -> Iterator[NumberedRow]:
    """A sequence of values. An object whose "data" is a list stands for the rows of this list."""
    while not text.at_end():
        line, row = text.line, text.row()
        text.skip_space()
        if isinstance(row, dict) and isinstance(row.get("data"), list):
            yield from ((-1 - index, as_row(item, 0)) for index, item in enumerate(row["data"]))
        else:
            if isinstance(row, dict):
                _check_orientation(row, f"{path}:{line}")
            yield line, row


def _check_orientation(row: Mapping[str, Any], where: str) -> None:
    """Raises: UserError for what is no row but a table by columns, as pandas writes it, or several tables."""
    tables = list(row.values())
    first = list(tables[0]) if tables and isinstance(tables[0], dict) else []
    numbered = bool(first) and first == [str(index) for index in range(len(first))]
    if numbered and all(isinstance(table, dict) and list(table) == first for table in tables):
        raise UserError(
            "contains columns rather than rows, as to_json of pandas writes them",
            where=where,
            remedy="Write rows: to_json(path, orient='records', lines=True).",
        )
    if len(row) > 1 and all(split_of(name) for name in row) and all(isinstance(table, list) for table in tables):
        raise UserError(
            f"contains several splits: {', '.join(row)}", where=where, remedy="Write each of them to its own file."
        )


class _JsonStream:
    """A JSON file read through a sliding window of characters. line: current line number, from 1."""

    def __init__(self, path: Path, encoding: str) -> None:
        self._path, self._file = path, open_utf8(path, encoding)
        self._decoder, self._encoding = codecs.getincrementaldecoder("utf-8-sig")(), encoding
        self._window, self._at, self._done = "", 0, False
        self.line = 1

    def _read_more(self) -> bool:
        """Extend the window. Returns False at the end of the file."""
        if self._done:
            return False
        try:
            data = self._file.read(max(CHUNK_CHARS, len(self._window) - self._at))
            self._done = not data
            text = self._decoder.decode(data, final=self._done)
        except UnicodeDecodeError as error:
            line = self.line + self._window.count("\n", self._at) + error.object[: error.start].count(b"\n")
            where = f"{self._path}:{line}"
            what = f"not {self._encoding.upper()} (byte 0x{error.object[error.start]:02x})"
            hint = encoding_hint(error.object[max(error.start - 40, 0) : error.start + 40], self._encoding)
            raise UserError(what, where=where, remedy=f"{hint[0].upper()}{hint[1:]}.") from error
        except READ_ERRORS as error:
            raise unreadable(self._path, error) from error
        self._window, self._at = self._window[self._at :] + text, 0
        if self._done:
            self._file.close()
        return True

    def advance(self, count: int) -> None:
        """Skip `count` characters of the window."""
        self.line += self._window.count("\n", self._at, self._at + count)
        self._at += count

    def skip_space(self) -> None:
        """Skip whitespace."""
        while True:
            match = SPACE.match(self._window, self._at)
            self.advance(match.end() - self._at if match else 0)
            if self._at < len(self._window) or not self._read_more():
                return

    def at_end(self) -> bool:
        """Whether all of the file has been read."""
        return self._at >= len(self._window) and not self._read_more() and self._at >= len(self._window)

    def at(self, mark: str) -> bool:
        """Whether the next character is `mark`. Raises: UserError if the file ends where "]" may follow."""
        if self.at_end():
            if mark == "]":
                raise self.fault("the file ends inside the list")
            return False
        return self._window[self._at] == mark

    def skip(self, pattern: re.Pattern[str]) -> bool:
        """Skip `pattern` if it comes next. Returns whether it did."""
        match = pattern.match(self._window, self._at)
        if match:
            self.advance(match.end() - self._at)
        return bool(match)

    def row(self) -> dict[str, Any] | BadRow:
        """The next JSON value as a row. Raises: UserError if there is none, or if it is invalid."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._window, self._at)
                if end < len(self._window) or self._done:
                    brackets = self._window.count("[", self._at, end) + self._window.count("{", self._at, end)
                    self.advance(end - self._at)
                    return as_row(value, brackets)
            except json.JSONDecodeError as error:
                if self._done:
                    raise self.fault(error.msg, error.pos) from error
            except BadRow as bad:  # of a value within this one, too, so its end is still to be found
                self._skip_value()
                return bad
            except (ValueError, RecursionError) as error:
                self._skip_value()
                return BadRow(f"not JSON: {json_error(error)}")
            self._read_more_of_row()

    def _read_more_of_row(self) -> None:
        if len(self._window) - self._at > MAX_ROW_CHARS:
            raise self.fault(f"a value of more than {MAX_ROW_CHARS:,} characters")
        if not self._read_more() and self._done:
            raise self.fault("the file ends inside a value")

    def _skip_value(self) -> None:
        """Skip a value that is JSON, but cannot be parsed. Raises: UserError if it has no end."""
        position, depth = self._at, 0
        while True:
            match = TOKEN.search(self._window, position) if self._window[self._at] in "[{" else None
            if match and match[0] != '"':
                position, depth = match.end(), depth + DEPTHS.get(match[0], 0)
                if depth == 0:
                    break
                if depth > MAX_SKIPPED_DEPTH:
                    raise self.fault("nested too deeply")
                continue
            number = NUMBER.match(self._window, self._at)
            if number and number[0] and (number.end() < len(self._window) or self._done):
                position = number.end()
                break
            position = (match.start() if match else len(self._window)) - self._at  # the window is cut there
            self._read_more_of_row()
        self.advance(position - self._at)

    def fault(self, message: str, position: int | None = None) -> UserError:
        """The error for invalid JSON at a position of the window; None: the current one."""
        position = self._at if position is None else position
        line = self.line + self._window.count("\n", self._at, position)
        column = position - self._window.rfind("\n", 0, position)
        return UserError(
            f"not JSON: {message.removesuffix(' at')} at column {column}",
            where=f"{self._path}:{line}",
            remedy="Fix the file. In JSON lines format (one object per line), bad rows can be skipped.",
        )
