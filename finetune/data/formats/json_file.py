"""Streaming reader of .json files: a list of rows, {"data": [rows]}, or a sequence of objects."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.formats.lines import NumberedRow, json_kind, open_binary, parse_object, read_jsonl, unreadable
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

CHUNK_CHARS = 1 << 20  # read at a time
MAX_ROW_CHARS = 1 << 28  # of one row; limits how far a file that is not JSON is read
SPACE = re.compile(r"[ \t\r\n]*")
DATA_FIRST = re.compile(r'\{[ \t\r\n]*"data"[ \t\r\n]*:[ \t\r\n]*\[')


def read_json(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """The rows of a JSON file with the line on which each starts. Holds one row in memory, not the file.

    Raises: UserError with line and column of the first syntax error, because rows after it cannot be found.
    """
    text = _JsonStream(path)
    text.skip_space()
    if text.skip(DATA_FIRST) or text.skip(re.compile(r"\[")):
        yield from _elements(text)
    elif _is_json_lines(path):
        yield from read_jsonl(path, source)
    else:
        yield from _objects(text)


def _is_json_lines(path: Path) -> bool:
    """Whether the first non-blank line is a complete object: JSON lines in a file named .json."""
    with open_binary(path) as file:
        line = next((line for line in file if not line.isspace()), b"").removeprefix(b"\xef\xbb\xbf")
    try:
        return "data" not in parse_object(line.decode("utf-8"))
    except (BadRow, UnicodeDecodeError):
        return False


def _elements(text: _JsonStream) -> Iterator[NumberedRow]:
    """The elements of a list whose opening bracket has been read."""
    text.skip_space()
    while not text.at("]"):
        line = text.line
        yield line, _as_row(text.value())
        text.skip_space()
        if text.at(","):
            text.advance(1)
            text.skip_space()
        elif not text.at("]"):
            raise text.fault("expected ',' or ']' after a row")


def _objects(text: _JsonStream) -> Iterator[NumberedRow]:
    """A sequence of values. An object whose "data" is a list stands for the rows of this list."""
    while not text.at_end():
        line, value = text.line, text.value()
        text.skip_space()
        if isinstance(value, dict) and isinstance(value.get("data"), list):
            yield from ((line, _as_row(item)) for item in value["data"])
        else:
            yield line, _as_row(value)


def _as_row(value: Any) -> dict[str, Any] | BadRow:
    return value if isinstance(value, dict) else BadRow(f"not a JSON object, but {json_kind(value)}")


class _JsonStream:
    """A JSON file read through a sliding window of characters. line: current line number, from 1."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, open_binary(path)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
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
            remedy = "Convert it, for example: iconv -f latin1 -t utf-8 OLD > NEW"
            raise UserError(
                f"not UTF-8 (byte 0x{error.object[error.start]:02x})", where=where, remedy=remedy
            ) from error
        except (OSError, EOFError) as error:
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

    def value(self) -> Any:
        """The next JSON value. Raises: UserError if there is none, or if it is invalid."""
        while True:
            try:
                value, end = self._json.raw_decode(self._window, self._at)
                complete = end < len(self._window) or self._done
            except json.JSONDecodeError as error:
                complete, end = False, -1
                if self._done or len(self._window) - self._at > MAX_ROW_CHARS:
                    raise self.fault(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.fault("nested too deeply") from error
            if complete:
                self.advance(end - self._at)
                return value
            self._read_more()

    def fault(self, message: str, position: int | None = None) -> UserError:
        """The error for invalid JSON at a position of the window; None: the current one."""
        position = self._at if position is None else position
        line = self.line + self._window.count("\n", self._at, position)
        column = position - self._window.rfind("\n", 0, position)
        return UserError(
            f"not JSON: {message} at column {column}",
            where=f"{self._path}:{line}",
            remedy="Fix the file. In JSON lines format (one object per line), bad rows can be skipped.",
        )
