"""Mirrors of the journal through the trackers of Accelerate (`tracking.also`): what TensorBoard and MLflow share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from finetune.errors import UserError
from finetune.recipe.recipe import Recipe
from finetune.recipe.secrets import mask_text
from finetune.recipe.trackers import TRACKERS
from finetune.tracking.atomic_files import plain
from finetune.tracking.background import Background
from finetune.tracking.journal import read_rows
from finetune.tracking.run import Run, shown
from finetune.units import format_number

FINISH_SECONDS = 60.0  # how long the end of training waits for a tracker at most

_NOT_FIGURES = ("step", "split", "time")


class AccelerateTracker:
    """A Listener. A row {"step", "split": "validation", "loss"} becomes "validation/loss" at that step, as in W&B.

    All calls are made by a thread: a server that hangs does not block training. A failure is reported once, and the tracker
    gets nothing after it.

    name: its entry in `TRACKERS`. kind: its class in accelerate.tracking.
    """

    name: ClassVar[str]
    kind: ClassVar[str]

    def __init__(self, run: Run, recipe: Recipe, say: Callable[[str], None] = print) -> None:
        """Raises: UserError if the tracker's package is not installed."""
        check_installed(self.name)
        self._run, self._recipe, self._say = run, recipe, say
        self._background = Background(f"{self.name}-tracker", self._report)
        self._tracker: Any = None
        self._given = self._logged = 0  # rows

    def started(self, *, start_step: int, total_steps: int, steps_per_epoch: int, facts: Mapping[str, Any]) -> None:
        size = self._run.metrics_file.stat().st_size if start_step and self._run.metrics_file.is_file() else 0
        self._background.start()
        self._background.later(lambda: self._open(size))

    def step(self, *, step: int, epoch: float, progress: Mapping[str, float]) -> None:
        """Not logged: rows are mirrored, not every step."""

    def row(self, row: Mapping[str, float | int | str]) -> None:
        copy = dict(row)
        self._given += 1
        self._background.later(lambda: self._log_given(copy))

    def table(self, name: str, *, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Not logged: these trackers take numbers."""

    def checkpoint(self, path: Path, *, step: int, best: bool) -> None:
        """Not logged."""

    def message(self, text: str) -> None:
        """Not logged: messages are for the console."""

    def finished(self, *, status: str, summary: Mapping[str, Any]) -> None:
        """Close the tracker; waits for about a minute at most."""
        self._background.later(lambda: self._close(status))
        if not self._background.finish(FINISH_SECONDS):
            missing = f"{self._given - self._logged:,} of the {format_number(self._given, 'row')} of this start"
            self._say(
                f"{self.name}{self._place()} did not finish within {FINISH_SECONDS:.0f} s: it lacks {missing}; "
                "metrics.jsonl has them"
            )

    def _open(self, size: int) -> None:
        """Start the tracker; log the first `size` bytes of metrics.jsonl where it lacks those rows."""
        from accelerate import tracking

        self._tracker = self._make(getattr(tracking, self.kind))
        self._tracker.start()
        if self._has_history():
            return
        self._tracker.store_init_configuration(dict(flatten(shown(self._recipe))))
        for row in read_rows(self._run.metrics_file, size):
            self._log(row)

    def _make(self, kind: Any) -> Any:
        """Accelerate's tracker, not started. kind: its class."""
        raise NotImplementedError

    def _has_history(self) -> bool:
        """Whether the tracker that was started has the configuration and the earlier rows of the run."""
        return False

    def _place(self) -> str:
        """Where its rows go, after its name: " at http://host:5000"; "" for files of the run."""
        return ""

    def _log_given(self, row: Mapping[str, Any]) -> None:
        self._log(row)
        self._logged += 1

    def _log(self, row: Mapping[str, Any]) -> None:
        split = row.get("split", "train")
        numbers = {
            f"{split}/{key}": value
            for key, value in plain(row).items()
            if key not in _NOT_FIGURES and isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        self._tracker.log(numbers, step=int(row["step"]))

    def _close(self, status: str) -> None:
        """status: as in `finished`."""
        self._tracker.finish()

    def _report(self, error: Exception) -> None:
        reason = (mask_text(str(error)).strip() or "no message").splitlines()[0]
        self._say(f"{self.name} is disabled, training continues ({type(error).__name__}: {reason})")


def check_installed(name: str) -> None:
    """Raises: UserError that names the package and the extra."""
    if not TRACKERS[name].is_installed:
        raise UserError(
            f"tracking.also names {name}, which is not installed",
            remedy=f"Install it: pip install 'finetune[{name}]', or remove it from tracking.also.",
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """("training.learning_rate", 3e-4), ...: keys joined by dots, lists as JSON; keys without a value are left out."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, int, float, str)):
            yield f"{prefix}{key}", value
        elif value is not None:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)
