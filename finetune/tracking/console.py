"""Progress for the user: a live view in a terminal, plain lines in a log file."""

from __future__ import annotations

import atexit
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import console as terminal
from rich.console import Group
from rich.live import Live
from rich.text import Text

from finetune.recipe.secrets import mask_text
from finetune.tracking.beside_view import Redirection
from finetune.tracking.live_view import Curve, curve_lines, figures_line
from finetune.units import format_bytes, format_count, format_figure, format_number, format_seconds

LINE_SECONDS = 30.0  # at least one plain line per so many seconds, however slow the steps are
RATE_STEPS = 50  # the time left is estimated from about so many recent steps

_NOT_FIGURES = ("step", "epoch", "split", "time")


class Console:
    """A Listener. In a terminal: a live view (figures, curve of the loss, last evaluation) below what is printed. Otherwise a
    plain line every `log_every` steps.

    The terminal is restored at `finished`, at exit and on Ctrl-C: `close` may be called at any time and repeatedly.
    """

    def __init__(self, console: terminal.Console | None = None, *, log_every: int = 10) -> None:
        self._console = console or terminal.Console(stderr=True, highlight=False)
        self._log_every = log_every
        self._live: Live | None = None
        self._total = 0
        self._unit = "unit"
        self._step_seconds: float | None = None
        self._last_step = (0, time.monotonic())
        self._last_line = time.monotonic()
        self._began = time.monotonic()
        self._loss = Curve()
        self._evaluation = ""  # the last one
        self._others = Redirection(self._print_line_of_others)

    def started(self, *, start_step: int, total_steps: int, steps_per_epoch: int, facts: Mapping[str, Any]) -> None:
        self._total = total_steps
        self._unit = str(facts.get("unit", "unit"))
        self._last_step = (start_step, time.monotonic())
        self._began = self._last_line = time.monotonic()
        self.message(describe_start(facts))
        if start_step:
            self.message(f"resuming from step {start_step} of {total_steps}")
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                console=self._console,
                refresh_per_second=8,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
            self._others.start()
            atexit.register(self.close)

    def step(self, *, step: int, epoch: float, progress: Mapping[str, float]) -> None:
        now = time.monotonic()
        self._update_rate(step, now)
        if self._live is not None:
            if math.isfinite(progress.get("loss", math.nan)):
                self._loss.add(progress["loss"])
            self._live.update(self._view(step, epoch, progress))
        elif step % self._log_every == 0 or step == self._total or now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            parts = [f"step {step}/{self._total}", *(text for _, text in self._figures(step, epoch, progress))]
            self._print(" · ".join(parts))

    def row(self, row: Mapping[str, float | int | str]) -> None:
        """Prints rows of evaluations; training rows show nothing that `step` has not shown."""
        if row.get("split", "train") == "train":
            return
        self._pause()
        figures = [f"{key} {format_figure(value)}" for key, value in row.items() if key not in _NOT_FIGURES]
        head = f"{row['split']} after epoch {format_figure(row.get('epoch'))} (step {row.get('step')})"
        self._evaluation = f"{head}: {' · '.join(figures)}"
        text = Text(f"{head}: ", style="bold") if self._live is not None else Text(f"{head}: ")
        self._print(text.append(" · ".join(figures), style="green" if self._live is not None else ""))

    def table(self, name: str, *, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Not printed: tables are for the report and W&B."""

    def checkpoint(self, path: Path, *, step: int, best: bool) -> None:
        self._pause()
        self._print(f"checkpoint {path.name}{' (best so far)' if best else ''}")

    def message(self, text: str) -> None:
        self._print(text)

    def finished(self, *, status: str, summary: Mapping[str, Any]) -> None:
        self.close()
        took = format_seconds(time.monotonic() - self._began)
        self._print(f"done in {took}" if status == "done" else f"{status} after {took}")

    def close(self) -> None:
        """Restore the terminal: remove the live line, show the cursor."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
            self._others.stop()
            atexit.unregister(self.close)

    def _pause(self) -> None:
        """Called after an evaluation or a save: its time must not count as the time of a step."""
        self._last_step = (self._last_step[0], time.monotonic())

    def _print(self, line: str | Text) -> None:
        """Through rich's console, which keeps the live line below; as Text, so that [brackets] are never markup."""
        self._console.print(line if isinstance(line, Text) else Text(mask_text(line)), soft_wrap=True)

    def _print_line_of_others(self, line: str) -> None:
        """With its colors; other control sequences are left out."""
        self._print(Text.from_ansi(mask_text(line)))

    def _update_rate(self, step: int, now: float) -> None:
        """Moving average of seconds per step: the time left follows a change of speed, not single slow steps."""
        before, then = self._last_step
        if step > before:
            seconds = (now - then) / (step - before)
            share = max(2 / (RATE_STEPS + 1), 1 / max(step - before, 1) if self._step_seconds is None else 0)
            self._step_seconds = (
                seconds if self._step_seconds is None else self._step_seconds * (1 - share) + seconds * share
            )
        self._last_step = (step, now)

    def _figures(self, step: int, epoch: float, progress: Mapping[str, float]) -> list[tuple[int, str]]:
        """(rank, text) of each figure; in a narrow terminal those of the largest ranks are left out first."""
        parts = [(4, f"epoch {epoch:.2f}")]
        if "loss" in progress:
            parts.append((0, f"loss {format_figure(progress['loss'])}"))
        if "learning_rate" in progress:
            parts.append((5, f"lr {progress['learning_rate']:.2e}"))
        if progress.get("units_per_second"):
            parts.append((3, f"{format_count(progress['units_per_second'])} {self._unit}s/s"))
        if self._step_seconds is not None and step < self._total:
            parts.append((1, f"{format_seconds((self._total - step) * self._step_seconds)} left"))
        if progress.get("padding_share"):
            parts.append((6, f"padding {progress['padding_share']:.0%}"))
        if progress.get("memory_bytes"):
            parts.append((2, format_bytes(progress["memory_bytes"])))
        return parts

    def _view(self, step: int, epoch: float, progress: Mapping[str, float]) -> Group:
        figures = figures_line(self._console, step, self._total, self._figures(step, epoch, progress))
        points = self._loss.points
        labels = (format_figure(max(points)), format_figure(min(points))) if points else ("", "")
        curve = curve_lines(self._console, points, labels, "loss")
        last = [Text(self._evaluation, style="green", no_wrap=True, overflow="ellipsis")] if self._evaluation else []
        return Group(figures, *curve, *(last if curve else []))


def describe_start(facts: Mapping[str, Any]) -> str:
    """One line about the training: the model and its size, the data, the ranks."""
    parts = [str(facts.get("model", "model"))]
    if facts.get("parameters"):
        trained = facts.get("trainable_parameters", facts["parameters"])
        all_of_them, some = format_count(facts["parameters"]), format_count(trained)
        only = "" if some == all_of_them else f", {some} trainable"
        parts[0] += f" ({all_of_them} parameters{only})"
    examples = facts.get("examples")
    if isinstance(examples, Mapping):
        parts.append(", ".join(f"{count:,} {split}" for split, count in examples.items()))
    if facts.get("ranks"):
        parts.append(f"{format_number(facts['ranks'], 'rank')} on {facts.get('device', 'cpu')}")
    if facts.get("global_batch"):
        packs = f", a step holds {facts['step']}" if facts.get("step") else ""
        parts.append(f"global batch {facts['global_batch']}{packs}")
    parts += [str(facts[key]) for key in ("deepspeed", "precision") if facts.get(key)]
    return " · ".join(parts)
