"""One listener for the loop that forwards every call to several; one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.events import Listener


class Listeners:
    """Calls them in the given order: put the journal first, so that nothing is shown that is not on disk.

    A listener whose `essential` is true ends training when it fails (the journal: a full disk). The failure of any other
    is reported once, and that listener is not called again except for `finished`.
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = list(listeners)
        self._failed: list[Listener] = []
        self._in_every_row: dict[str, float] = {}

    def add_to_rows(self, **figures: float) -> None:
        """Figures that every row has from now on."""
        self._in_every_row |= figures

    def started(self, *, start_step: int, total_steps: int, steps_per_epoch: int, facts: Mapping[str, Any]) -> None:
        self._each(
            lambda one: one.started(
                start_step=start_step, total_steps=total_steps, steps_per_epoch=steps_per_epoch, facts=facts
            )
        )

    def step(self, *, step: int, epoch: float, progress: Mapping[str, float]) -> None:
        self._each(lambda one: one.step(step=step, epoch=epoch, progress=progress))

    def row(self, row: Mapping[str, float | int | str]) -> None:
        whole = {**row, **self._in_every_row}
        self._each(lambda one: one.row(whole))

    def table(self, name: str, *, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._each(lambda one: one.table(name, step=step, columns=columns, rows=rows))

    def checkpoint(self, path: Path, *, step: int, best: bool) -> None:
        self._each(lambda one: one.checkpoint(path, step=step, best=best))

    def message(self, text: str) -> None:
        self._each(lambda one: one.message(text))

    def finished(self, *, status: str, summary: Mapping[str, Any]) -> None:
        """Called on every listener, including those that failed before and those after an essential one that fails now."""
        failed, self._failed = self._failed, []
        essential: Exception | None = None
        for one in self._listeners:
            try:
                one.finished(status=status, summary=summary)
            except Exception as error:
                if getattr(one, "essential", False):
                    essential = essential or error
                elif one not in failed:
                    self._report(one, error)
        if essential is not None:
            raise essential

    def _each(self, call: Callable[[Listener], None]) -> None:
        for one in self._listeners:
            if one in self._failed:
                continue
            try:
                call(one)
            except Exception as error:
                if getattr(one, "essential", False):
                    raise
                self._failed.append(one)
                self._report(one, error)

    def _report(self, failed: Listener, error: Exception) -> None:
        text = f"{type(failed).__name__} failed and is disabled; training continues ({type(error).__name__}: {error})"
        for one in self._listeners:
            if one is not failed and one not in self._failed:
                try:
                    one.message(text)
                except Exception:  # its own failure is reported when it is called next
                    continue
