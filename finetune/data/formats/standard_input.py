"""Standard input as a file that is read from its start more than once, as long as only its start was read before.

Finding columns, separators and encodings takes a look at the first rows. What was read for it is kept and read again by the
next who opens it; once `read_on` was called, nothing is kept any more, so that memory does not grow.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from finetune.errors import UserError

STDIN = Path("/dev/stdin")
NAME = "standard input"
BUFFER_BYTES = 1 << 16


class StandardInput:
    """What comes through a pipe. stream: its bytes; None: those of this process."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream
        self._head = bytearray()
        self._keeps, self._moved_on, self._ended = True, False, False

    def read_on(self) -> None:
        """From now on nothing is kept: it can be opened once more."""
        self._keeps = False

    def open(self) -> io.BufferedReader:
        """Its bytes from the start. Raises: UserError if they are no longer there, or it is a terminal or closed."""
        if self._stream is None:
            self._stream = getattr(sys.stdin, "buffer", None)
        if self._stream is None or self._stream.closed:
            raise UserError("is closed", where=NAME, remedy="Pipe rows into the command, or name a file.")
        if self._moved_on:
            raise UserError("can be read only once", where=NAME, remedy="Write the rows to a file.")
        return io.BufferedReader(_FromStart(self), BUFFER_BYTES)

    def at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes from a position on, b"" at the end."""
        if position < len(self._head):
            return bytes(self._head[position : position + count])
        if self._ended:
            return b""
        if not self._keeps and not self._moved_on:
            self._moved_on = True
            self._head.clear()
        read = self._stream.read1 if hasattr(self._stream, "read1") else self._stream.read
        data: bytes = read(count)
        self._ended = not data
        if self._keeps:
            self._head += data
        return data


class _FromStart(io.RawIOBase):
    def __init__(self, source: StandardInput) -> None:
        self._source, self._position = source, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


_input = StandardInput()


def standard_input() -> StandardInput:
    """That of this process."""
    return _input
