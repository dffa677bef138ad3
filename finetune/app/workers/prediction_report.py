"""What a user sees of a prediction: a progress line, and at its end rows, speed, balance and errors."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.app.predict_options import PredictOptions
from finetune.inference.prediction.parts import Parts, disk_errors
from finetune.inference.prediction.rank_loop import total_figures
from finetune.inference.prediction.scored_rows import Measured, describe_measured
from finetune.inference.prediction.state import State
from finetune.tasks.records import SET_THRESHOLD
from finetune.terminal import ProgressLine, print_line
from finetune.tracking.wandb_job import log_job
from finetune.units import format_number, format_seconds


class PredictionProgress:
    """A line while rows are answered. before: the state at this start. total: about how many rows there are, if known."""

    def __init__(self, before: State, total: int | None = None) -> None:
        self._before, self._total, self._line = before, total, ProgressLine()
        self._first: tuple[float, int] | None = (
            None  # time and rows, at the first look: chunks of an earlier start count
        )

    def show(self, state: State | None, behind: int) -> None:
        """state: after the last window in the output. behind: rows that are answered in the windows after it."""
        now = state or self._before
        self._line.show(*self.describe(now.rows + behind, now.failed, time.monotonic()))

    def describe(self, rows: int, errors: int, now: float) -> tuple[str, float]:
        """The line, and the share that is done."""
        self._first = self._first or (now, rows)
        rate = (rows - self._first[1]) / max(now - self._first[0], 1e-6)
        known = self._total is not None and self._total >= rows
        text = f"answered: {rows:,} of about {self._total:,} rows" if known else f"answered: {rows:,} rows"
        text += f", {rate:,.1f} rows/s" if 0 < rate < 10 else f", {rate:,.0f} rows/s" if rate else ""
        if known and self._total and rate:
            text += f", {format_seconds((self._total - rows) / rate)} left"
        text += f", {errors:,} errors" if errors else ""
        return text, rows / self._total if known and self._total else 0.0

    def close(self) -> None:
        self._line.close()


def describe_resumed(written: int, waiting: int) -> str:
    """What an earlier start has done. waiting: rows that are answered, but not in the output."""
    if not waiting:
        return f"resuming after {format_number(written, 'row')}"
    if not written:
        return f"resuming: {format_number(waiting, 'row')} answered, and none in the output yet"
    return f"resuming after {format_number(written, 'row')}; {waiting:,} more answered, and not in the output yet"


def report(
    parts: Parts,
    rows_before: int,
    state: State,
    ranks: Sequence[Mapping[str, Any]],
    options: PredictOptions,
    model: str,
    measured: Measured,
) -> dict[str, Any]:
    """Print what was done and append it to the journal. Rank 0 only. rows_before: that earlier starts answered.

    rows, errors: of the whole output; rows_here, rows_per_second and the rest: of this start alone.
    """
    totals = total_figures(ranks)
    rows_here = max(0, state.rows - rows_before)
    row = {
        "time": round(time.time(), 3),
        "output": str(parts.output),
        "model": model,
        "data": list(options.data),
        "ranks": len(ranks),
        "rows": state.rows,
        "rows_here": rows_here,
        "rows_per_second": round(rows_here / max(totals["seconds"], 1e-9), 3),
        **totals,
        "errors": state.errors,
        "nothing": state.nothing,
        "scored_rows": measured.rows,
        **{f"metrics/{name}": value for name, value in measured.scalars.items()},
        "options": options.asked(),
    }
    with disk_errors(parts.journal), parts.journal.open("a", encoding="utf-8") as journal:
        journal.write(json.dumps(row, ensure_ascii=False) + "\n")
    threshold = SET_THRESHOLD if options.threshold is None else options.threshold
    nothing = state.describe_nothing(threshold)
    for line in (*_lines(row, state), *nothing, *describe_measured(measured, state.rows)):
        print_line(line)
    config = {"model": model, "data": row["data"], "output": row["output"], **row["options"]}
    figures = {
        name: value for name, value in row.items() if name not in (*config, "options", "time", "errors", "nothing")
    }
    figures |= {f"errors/{kind}": count for kind, count in state.errors.items()}
    figures |= {f"nothing/{name}": count for name, count in state.nothing.items()}
    log_job("predict", parts.folder, options.wandb, config, figures, print_line, model=Path(options.model))
    return row


def _lines(row: Mapping[str, Any], state: State) -> list[str]:
    if not state.rows:
        return [f"the data has no rows: {row['output']} is empty"]
    seconds, rate = format_seconds(row["seconds"]), row["rows_per_second"]
    lines = [
        f"{row['output']}: {state.rows:,} rows answered ({row['rows_here']:,} now in {seconds}, {rate:,.1f} rows/s)"
    ]
    if state.failed:
        have = "has" if state.failed == 1 else "have"
        lines.append(f"{state.failed:,} of them {have} an error in place of an answer: {state.failed_kinds}")
        lines += [f"  row {state.first_errors.get(kind, 0):,}: {why}" for kind, why in state.first_reasons.items()]
    if row["ranks"] > 1:
        lines.append(
            f"{row['ranks']} ranks, idle {row['idle_share']:.1%}, busiest rank {row['busiest_rank']} "
            f"({format_seconds(row['busiest_seconds'])}), padding {row['padding_share']:.1%}"
        )
    else:
        lines.append(f"padding {row['padding_share']:.1%}")
    return lines
