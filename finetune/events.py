"""The events of a run: the training loop reports them, `tracking/` listens. The loop does not know who does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Listener(Protocol):
    """Takes the events of one run. Rank 0 only; the other ranks have a SilentListener."""

    def started(self, *, start_step: int, total_steps: int, steps_per_epoch: int, facts: Mapping[str, Any]) -> None:
        """Training begins, or resumes if start_step > 0. facts: model, parameters, ranks, data counts, machine."""

    def step(self, *, step: int, epoch: float, progress: Mapping[str, float]) -> None:
        """After every optimizer step: loss, learning_rate, grad_norm, units_per_second, padding_share, memory_bytes.
        For the progress display; not every step becomes a row.
        """

    def row(self, row: Mapping[str, float | int | str]) -> None:
        """One line of metrics.jsonl: {"step", "epoch", "split", "<metric>": number, "time"}."""

    def table(self, name: str, *, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table after an evaluation: confusion_matrix, per_class, worst_examples, samples."""

    def checkpoint(self, path: Path, *, step: int, best: bool) -> None:
        """A checkpoint was published."""

    def message(self, text: str) -> None:
        """One line for the user: resumed from, skipped rows, a warning."""

    def finished(self, *, status: str, summary: Mapping[str, Any]) -> None:
        """status: "done", "stopped" or "failed". summary: best and last figures, seconds, path of the model; of a
        run that failed its reason, under "failure", and its kind (FinetuneError.kind) under "failure_kind".
        """


class SilentListener:
    """The listener of all ranks but 0."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None
