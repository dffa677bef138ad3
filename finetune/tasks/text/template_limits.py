"""Limits on rendering one conversation: chat templates are programs of strangers."""

from __future__ import annotations

import signal
import threading
from typing import Any

SECONDS = 10.0  # of processor time, so that a busy machine makes no row bad
CHARACTERS = 1 << 25  # of rendered text


class TookTooLong(Exception):
    """Rendering took longer than SECONDS."""


class time_limit:  # noqa: N801 (a context manager that is entered for every row, so it is no generator)
    """Raise TookTooLong inside the block after so many seconds of this process's own processor time.

    Only in the main thread, the only one that Python interrupts; elsewhere there is no limit. A single operation of C
    code is interrupted when it is over. The handler of SIGVTALRM stays, because installing it takes longer than most
    conversations.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limited = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if not self._limited:
            return
        if not _installed:
            signal.signal(signal.SIGVTALRM, _interrupt)
            _installed.append(True)
        signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds)

    def __exit__(self, *error: Any) -> None:
        if self._limited:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


_installed: list[bool] = []


def _interrupt(number: int, frame: Any) -> None:
    raise TookTooLong
