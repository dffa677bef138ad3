"""Limits on rendering one conversation: chat templates are programs of strangers.

Rendering may take SECONDS of processor time and BYTES of memory. Both are limits of the kernel for this process, because a
single operation of a template (`'x' * 20000000000`) would otherwise fill the machine's memory.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

SECONDS = 3.0  # of processor time, so that a busy machine makes no row bad
ALONE = 4  # times SECONDS: an operation of C code that takes longer ends the process, since nothing else interrupts it
AGAIN = (
    0.1  # seconds until the next interrupt: Jinja swallows those that come while it computes constants of a template
)
CHARACTERS = 1 << 25  # of rendered text
BYTES = 1 << 30  # of memory, beyond what the process has
STRIKES = 3  # conversations beyond the limits, after which the template is at fault and no row is tried any more
MEASURED_FOR = (
    1.0  # seconds for which the size of the process is not asked again: asking takes longer than most templates
)


class TookTooLong(Exception):
    """Rendering took longer than SECONDS."""


class rendering_limits:  # noqa: N801 (a context manager that is entered for every row, so it is no generator)
    """Raise TookTooLong inside the block after so many seconds of this process's own processor time, and MemoryError for
    an allocation beyond BYTES more than the process has.

    The time only in the main thread, the only one that Python interrupts; elsewhere there is no limit. A single operation
    of C code is interrupted when it is over; after ALONE times as long the system ends the process by SIGVTALRM, which
    apart.py and pool.py report. The handler of SIGPROF stays, because installing it takes longer than most
    conversations. The memory only on Linux.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limited = threading.current_thread() is threading.main_thread()
        self._before: tuple[int, int] | None = None

    def __enter__(self) -> None:
        if not self._limited:
            return
        if not _installed:
            signal.signal(signal.SIGPROF, _interrupt)
            _installed.append(True)
        if sys.platform == "linux":
            self._before = resource.getrlimit(resource.RLIMIT_AS)
            allowed = _size() + BYTES
            if self._before[0] == resource.RLIM_INFINITY or allowed < self._before[0]:
                resource.setrlimit(resource.RLIMIT_AS, (allowed, self._before[1]))
        if not interactive():
            signal.setitimer(signal.ITIMER_VIRTUAL, ALONE * self._seconds)
        signal.setitimer(signal.ITIMER_PROF, self._seconds, AGAIN)

    def __exit__(self, *error: Any) -> None:
        try:
            if self._limited:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                signal.setitimer(signal.ITIMER_PROF, 0)
        finally:
            if self._before is not None:
                resource.setrlimit(resource.RLIMIT_AS, self._before)


_installed: list[bool] = []
_measured: dict[int, tuple[float, int]] = {}  # process -> (when, bytes of address space)


def _size() -> int:
    """Bytes of address space of this process, as of a moment ago."""
    now, process = time.monotonic(), os.getpid()
    when, size = _measured.get(process, (0.0, 0))
    if not size or now - when > MEASURED_FOR:
        size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        _measured.clear()
        _measured[process] = (now, size)
    return size


def interactive() -> bool:
    """Whether somebody types into this Python, which must not end because of a template."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def _interrupt(number: int, frame: Any) -> None:
    raise TookTooLong
