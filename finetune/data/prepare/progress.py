"""How far preparation is: what it reports, and the settings that the stage of preparation gives to everything it calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from finetune.units import format_seconds


class Progress(Protocol):
    """Takes reports of progress and shows them."""

    def show(self, text: str, share: float) -> None:
        """A line such as "train: 5,120 of 100,000 rows, 4,870 rows/s, 20 s left"; share: of the work done, 0 to 1."""
        ...

    def close(self) -> None:
        """The work that was shown last is done, or ended early."""
        ...


def _discard(text: str) -> None:
    """Nobody listens."""


class SilentProgress:
    """Shows nothing."""

    def show(self, text: str, share: float) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Stage:
    """What the stage of preparation gives to the code that it calls.

    workers: processes that may work at the same time. notify: takes lines that must be read, such as one about an entry of
    the cache that is damaged.
    """

    workers: int = 1
    progress: Progress = field(default_factory=SilentProgress)
    notify: Callable[[str], None] = _discard


_ALONE = Stage()
_stage: ContextVar[Stage | None] = ContextVar("stage", default=None)


def current_stage() -> Stage:
    """The stage that this code runs in. Outside of any: one process, and nothing is shown."""
    return _stage.get() or _ALONE


@contextmanager
def entered(stage: Stage) -> Iterator[None]:
    """Run the block as part of this stage."""
    token = _stage.set(stage)
    try:
        yield
    finally:
        _stage.reset(token)


class Meter:
    """Measures how fast units are worked off, and shows it. name: "train". total: 0 if it is not known. doing: "encoding"."""

    def __init__(self, name: str, total: int, *, doing: str, unit: str = "rows", done: int = 0) -> None:
        self.name, self.total, self.doing, self.unit = name, total, doing, unit
        self._first, self._started = done, time.monotonic()

    def update(self, done: int) -> None:
        """done: units worked off so far, with those that were done before this process started."""
        seconds = max(time.monotonic() - self._started, 1e-6)
        rate = (done - self._first) / seconds
        left = f", {format_seconds((self.total - done) / rate)} left" if rate and done < self.total else ""
        of = f" of {self.total:,}" if self.total else ""
        text = f"{self.doing} {self.name}: {done:,}{of} {self.unit}, {rate:,.0f} {self.unit}/s{left}"
        current_stage().progress.show(text, done / max(self.total, 1))

    def close(self) -> None:
        current_stage().progress.close()
