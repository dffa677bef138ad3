"""What other code prints while a live view is in the terminal: whole lines, above the view."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

Write = Callable[[str], None]


class WholeLines:
    """A stream in place of one of a terminal. A line is written when it is complete. A progress bar, which rewrites its line
    with carriage returns, is one line, as it was last, once it is done: what is flushed half-way is kept until then.

    write: writes a line. stream: the one in whose place it is, which has all other attributes.
    """

    def __init__(self, stream: Any, write: Write) -> None:
        self._stream, self._write = stream, write
        self._line = ""
        self._lock = threading.RLock()
        self.rich_proxied_file = stream  # rich's own console writes there

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._lock:
            *whole, rest = (self._line + text).split("\n")
            self._line = _as_shown(rest) + ("\r" if rest.endswith("\r") else "")
        for line in whole:
            self._write(_as_shown(line))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing: half a line would be a line of its own above the view."""

    def close_line(self) -> None:
        """Write what is left, without a line feed at its end."""
        with self._lock:
            rest, self._line = _as_shown(self._line), ""
        if rest:
            self._write(rest)


def _as_shown(line: str) -> str:
    """What a terminal shows of it at last: of "10%", "20%" and a carriage return between them "20%"."""
    return next((part for part in reversed(line.split("\r")) if part), "")


class Redirection:
    """stdout and stderr, those of them that are terminals, as WholeLines from `start` to `stop`. A stream that is no terminal,
    such as the log of a rank, stays as it is.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._placed: dict[str, WholeLines] = {}

    def start(self) -> None:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                self._placed[name] = WholeLines(stream, self._write)
                setattr(sys, name, self._placed[name])

    def stop(self) -> None:
        """Call it when the view is gone. May be called repeatedly."""
        placed, self._placed = self._placed, {}
        for name, lines in placed.items():
            if getattr(sys, name) is lines:
                setattr(sys, name, lines.rich_proxied_file)
            lines.close_line()
