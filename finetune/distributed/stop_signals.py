"""The signals that ask a training to save and stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals_handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """While the block runs, `handler` gets what asks to stop."""
    before = {number: signal.signal(number, handler) for number in stop_signals()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class Interrupts:
    """What signals have asked of a process that supervises ranks.

    count: signals so far. signal: the name of the first one that asked ranks to save and stop. aborted: they are to end at
    once. stopped: the same, on another signal than Ctrl-C.
    """

    def __init__(self, notify: Callable[[str], None], *, ends_at_once: bool = False) -> None:
        """ends_at_once: the first signal does, because the ranks have nothing to save."""
        self.count, self.signal, self.aborted, self.stopped = 0, "", False, False
        self._notify, self._ends_at_once = notify, ends_at_once

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        self.count += 1
        if number == signal.SIGINT and (self.count > 1 or self._ends_at_once):
            self.aborted = True
        elif self._ends_at_once:
            self.stopped = True
        elif self.count == 1:
            self.signal = signal.Signals(number).name
            self._notify(f"{self.signal}: saving a checkpoint, then ending (Ctrl-C: at once)")


def stop_signals() -> list[signal.Signals]:
    """What asks a training to save and stop. SIGHUP, the end of the terminal, does unless nohup keeps it away."""
    hangs_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, *hangs_up]
