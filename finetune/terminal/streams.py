"""Standard output and standard error that outlive their readers."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetune.terminal.safe_text import guard, is_plain, mask_secrets


class LastingStream:
    """A text stream that outlives its reader, and passes no control sequences of strangers. When nobody reads it any more
    (`| head`, a terminal that was closed, a full disk), what is printed goes to a log (`keep_output_in`) or nowhere: output
    is lost, the work is not.

    masked: what looks like a secret is hidden.
    """

    def __init__(self, stream: Any, *, masked: bool = False) -> None:
        self._stream, self._masked = stream, masked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if isinstance(text, str):
            text = mask_secrets(text) if self._masked else text
            text = text if is_plain(text) else guard(text, self._stream.isatty())
        try:
            return int(self._stream.write(text))
        except UnicodeEncodeError:  # the terminal of a plain locale
            return int(self._stream.write(text.encode("ascii", "backslashreplace").decode()))
        except OSError as error:
            self.turn_away(error)
            if getattr(self._stream, "write_through", False):  # no buffer kept it (python -u)
                with suppress(OSError):
                    self._stream.write(text)
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.turn_away(error)

    def turn_away(self, error: OSError | None = None) -> None:
        """From now on into the log. What could not be written is still in the buffer, and goes there too."""
        if self not in _turned:
            _turned.append(self)
        if error is not None and error.errno not in GONE:
            _lost.append(error.strerror or str(error))
        for target in filter(None, (_log[0], Path(os.devnull))):
            with suppress(OSError, ValueError):
                file = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                os.dup2(file, self._stream.fileno())
                os.close(file)
                self._stream.flush()
                return


_log: list[Path | None] = [None]
_turned: list[LastingStream] = []  # nobody reads them any more
_lost: list[str] = []  # why a reader that is there did not get all
GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # the reader does not want more, as of `| head`, or the terminal is closed


def output_lost() -> str:
    """Why what was printed is lost, although a reader wants it and no log keeps it, such as a full disk; "" if it is not."""
    return _lost[0] if _lost and _log[0] is None else ""


def keep_output_in(log: Path) -> None:
    """Where lines go that nobody reads, from now on."""
    _log[0] = log
    for stream in _turned:
        stream.turn_away()


def is_rank() -> bool:
    """Whether a launcher started this process; its standard error is a log."""
    return "RANK" in os.environ or "WORLD_SIZE" in os.environ


@contextmanager
def lasting_streams(*, masked: bool = False) -> Iterator[None]:
    """For the time of a program: printing never ends it. masked: stderr goes to a log, without secrets."""
    for number in (0, 1, 2):  # a closed one would be the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        LastingStream(stream if stream is not None else open(os.devnull, "w"), masked=masked and index == 1)  # noqa: SIM115, PTH123
        for index, stream in enumerate(before)
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
