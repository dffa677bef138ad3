"""Reader of .json files, element by element: a list of rows, {"data": [rows]}, or one object after another."""

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

CHUNK = 1 << 20  # characters read at a time
LONGEST = 1 << 28  # characters of one row; a file that is no JSON is not read to its end to find out
SPACE = re.compile(r"[ \t\r\n]*")
DATA_FIRST = re.compile(r'\{[ \t\r\n]*"data"[ \t\r\n]*:[ \t\r\n]*\[')


def read_json(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """Rows of a JSON file with the line on which each starts; memory holds one row, not the file.

    Raises: UserError with line and column where the file stops being JSON: nothing after can be told apart.
    """
    text = _Text(path)
    text.skip_space()
    if text.opens(DATA_FIRST) or text.opens(re.compile(r"\[")):
        yield from _elements(text)
    elif _one_a_line(path):
        yield from read_jsonl(path, source)
    else:
        yield from _objects(text)


def _one_a_line(path: Path) -> bool:
    """Whether the first line that is not blank is a whole object: JSON lines under the name .json."""
    with open_binary(path) as file:
        line = next((line for line in file if not line.isspace()), b"").removeprefix(b"\xef\xbb\xbf")
    try:
        return "data" not in parse_object(line.decode("utf-8"))
    except (BadRow, UnicodeDecodeError):
        return False


def _elements(text: _Text) -> Iterator[NumberedRow]:
    """The elements of a list whose bracket was just read."""
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


def _objects(text: _Text) -> Iterator[NumberedRow]:
    """One value after another; a single object whose "data" is a list stands for the list's rows."""
    while not text.at_end():
        line, value = text.line, text.value()
        text.skip_space()
        if isinstance(value, dict) and isinstance(value.get("data"), list):
            yield from ((line, _as_row(item)) for item in value["data"])
        else:
            yield line, _as_row(value)


def _as_row(value: Any) -> dict[str, Any] | BadRow:
    return value if isinstance(value, dict) else BadRow(f"not a JSON object but {json_kind(value)}")


class _Text:
    """A file as a window of characters that slides forward; knows the line it is on."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, open_binary(path)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._window, self._at, self._done = "", 0, False
        self.line = 1

    def _more(self) -> bool:
        """Reads on; False at the end of the file."""
        if self._done:
            return False
        try:
            data = self._file.read(max(CHUNK, len(self._window) - self._at))
            self._done = not data
            fresh = self._decoder.decode(data, final=self._done)
        except UnicodeDecodeError as error:
            line = self.line + self._window.count("\n", self._at) + error.object[: error.start].count(b"\n")
            where = f"{self._path}:{line}"
            remedy = "Convert it, such as by iconv -f latin1 -t utf-8 OLD > NEW"
            raise UserError(
                f"not UTF-8 (byte 0x{error.object[error.start]:02x})", where=where, remedy=remedy
            ) from error
        except (OSError, EOFError) as error:
            raise unreadable(self._path, error) from error
        self._window, self._at = self._window[self._at :] + fresh, 0
        if self._done:
            self._file.close()
        return True

    def advance(self, count: int) -> None:
        self.line += self._window.count("\n", self._at, self._at + count)
        self._at += count

    def skip_space(self) -> None:
        while True:
            match = SPACE.match(self._window, self._at)
            self.advance(match.end() - self._at if match else 0)
            if self._at < len(self._window) or not self._more():
                return

    def at_end(self) -> bool:
        return self._at >= len(self._window) and not self._more() and self._at >= len(self._window)

    def at(self, mark: str) -> bool:
        if self.at_end():
            if mark == "]":
                raise self.fault("the file ends inside the list")
            return False
        return self._window[self._at] == mark

    def opens(self, pattern: re.Pattern[str]) -> bool:
        """Whether the text goes on with `pattern`, which is then read."""
        match = pattern.match(self._window, self._at)
        if match:
            self.advance(match.end() - self._at)
        return bool(match)

    def value(self) -> Any:
        """The next JSON value, whole."""
        while True:
            try:
                value, end = self._json.raw_decode(self._window, self._at)
                whole = end < len(self._window) or self._done
            except json.JSONDecodeError as error:
                whole, end = False, -1
                if self._done or len(self._window) - self._at > LONGEST:
                    raise self.fault(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.fault("nested too deeply") from error
            if whole:
                self.advance(end - self._at)
                return value
            self._more()

    def fault(self, message: str, position: int | None = None) -> UserError:
        position = self._at if position is None else position
        line = self.line + self._window.count("\n", self._at, position)
        column = position - self._window.rfind("\n", 0, position)
        return UserError(
            f"not JSON: {message} at column {column}",
            where=f"{self._path}:{line}",
            remedy="Mend it. Saved as JSON lines, one object a line, a bad row could be skipped.",
        )
