"""`finetune runs`: the runs of a folder, the newest first."""

from __future__ import annotations

from pathlib import Path

from finetune.terminal import print_rows
from finetune.tracking.console import figure
from finetune.tracking.run_summary import RunSummary, find_runs
from finetune.units import format_age

HEAD = ("run", "task", "status", "steps", "best", "started")


def list_runs(root: Path, status: str) -> None:
    """Print one row a run. status: only runs of this status; "" for all."""
    found = [run for run in find_runs(root) if not status or run.status == status]
    print_rows(HEAD, [_row(run) for run in found], empty=f"no runs in {root}", titled=True)


def _row(run: RunSummary) -> tuple[str, ...]:
    steps = f"{run.step:,}/{run.total:,}" if run.total else f"{run.step:,}" if run.step else ""
    best = f"{run.metric} {figure(run.value)}" if run.value is not None else ""
    return str(run.path), run.task, run.status, steps, best, format_age(run.age)
