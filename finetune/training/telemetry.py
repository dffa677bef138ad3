"""What training can do without: measured, drawn or reported while it works, switched off once it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Telemetry:
    """Runs what must never end a training. Nothing that communicates between ranks may run in it: a rank that fails
    would leave the others waiting.
    """

    def __init__(self, tell: Callable[[str], None] | None) -> None:
        """tell: takes one line for the person who watches; None: the rank's log."""
        self._tell = tell or (lambda text: print(text, file=sys.stderr, flush=True))
        self._off: set[str] = set()

    def run(self, name: str, call: Callable[[], T], otherwise: T) -> T:
        """The value of `call`. Its first exception is reported, and from then on the value is `otherwise`."""
        if self.is_off(name):
            return otherwise
        try:
            return call()
        except Exception as error:
            self.switch_off(name, f"{type(error).__name__}: {error}")
            return otherwise

    def is_off(self, name: str) -> bool:
        """Whether it has failed before."""
        return name in self._off

    def switch_off(self, name: str, reason: str) -> None:
        """Reported once; `run` does nothing under this name from now on."""
        if name not in self._off:
            self._off.add(name)
            self._tell(f"{name} failed and is switched off; training goes on ({reason})")
