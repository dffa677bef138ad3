"""The next step's batches, fetched while the device still works on the current one's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import torch

from finetune.distributed.stopwatch import Stopwatch

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """`fetch` while the device is busy, then `take`."""

    def __init__(self, steps: Iterator[Item], device: torch.device) -> None:
        self._steps = steps
        self._waiting = Stopwatch(device)
        self._fetched: list[Item | Exception] = []

    def fetch(self) -> None:
        """Fetch a step, unless one is here. What goes wrong is raised when the step is taken."""
        if self._fetched:
            return
        with self._waiting.running():
            try:
                self._fetched.append(next(self._steps))
            except Exception as error:
                self._fetched.append(error)

    def take(self) -> Item:
        """The step fetched last, or else the next one. Raises: what fetching it raised, StopIteration after the last."""
        self.fetch()
        fetched = self._fetched.pop()
        if isinstance(fetched, Exception):
            raise fetched
        return fetched

    def waited(self) -> float:
        """Seconds since the last call in which the device waited for data: on a GPU those in which it had run dry."""
        seconds, self._waiting = self._waiting.read(), Stopwatch(self._waiting.device)
        return seconds
