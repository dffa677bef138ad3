"""A request to stop: Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP on any rank. The loop checks at every step, and all ranks agree."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopRequest:
    """`requested` becomes true on the first signal; a second SIGINT interrupts at once, as users expect."""

    def __init__(self) -> None:
        self.requested = False
        self.by = ""

    def listen(self) -> StopRequest:
        """Take over the signals; main thread only. Under nohup, the end of the terminal stops nothing."""
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested, self.by = True, signal.Signals(number).name
