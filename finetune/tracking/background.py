"""Calls that may take long or hang (a server, a network disk), made in order by a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Background:
    """Makes the calls one after the other. The first that fails is passed to `on_failure`; none is made after it.

    The thread is a daemon: a call that hangs does not keep the process from ending.
    """

    def __init__(self, name: str, on_failure: Callable[[Exception], None]) -> None:
        self._name, self._on_failure = name, on_failure
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.broken = False

    @property
    def running(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def later(self, call: Callable[[], None]) -> None:
        """Queue a call; dropped before `start`, after `finish` and after a failure."""
        if self._thread is not None and not self.broken:
            self._queue.put(call)

    def finish(self, seconds: float) -> bool:
        """Wait for the calls that are queued. Returns whether they have all been made, or one of them has failed."""
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        self._queue.put(None)
        thread.join(seconds)
        late = thread.is_alive() and not self.broken
        self.broken = self.broken or late
        return not late

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            if self.broken:
                continue
            try:
                call()
            except Exception as error:
                self.broken = True
                self._on_failure(error)
