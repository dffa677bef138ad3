"""Limits on rendering one conversation: chat templates are programs of strangers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 10.0  # of processor time, so that a busy machine makes no row bad
CHARACTERS = 1 << 25  # of rendered text


class TookTooLong(Exception):
    """Rendering took longer than SECONDS."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TookTooLong inside the block after so many seconds of this process's own processor time.

    Only in the main thread, the only one that Python interrupts; elsewhere there is no limit. A single operation of C
    code is interrupted when it is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
