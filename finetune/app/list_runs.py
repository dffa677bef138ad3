"""`finetune runs`: the runs of a folder, the newest first."""

from __future__ import annotations

from pathlib import Path

from finetune.app.runs import ROOT
from finetune.errors import UserError
from finetune.terminal import print_rows
from finetune.tracking.run import nearest_folder
from finetune.tracking.run_summary import RunSummary, find_runs
from finetune.units import format_age, format_figure

HEAD = ("run", "task", "status", "steps", "best", "started")
STATUSES = ("running", "done", "stopped", "failed", "interrupted", "damaged")


def list_runs(root: Path, status: str) -> None:
    """Print one row a run. status: only runs of this status; "" for all.

    Raises: UserError for a status that no run has, and for a folder that is none. Before the first run there is no ROOT.
    """
    if status and status not in STATUSES:
        raise UserError(f"there is no status {status!r}", where="--status", remedy=f"Use one of {', '.join(STATUSES)}.")
    if not root.is_dir() and root != ROOT:
        near = nearest_folder(root)
        raise UserError(
            "is not a folder" if root.exists() else "no such folder",
            where=str(root),
            remedy=f"Did you mean {near}?" if near else "Give a folder of runs, such as runs/ or runs/<recipe name>.",
        )
    found = [run for run in find_runs(root) if not status or run.status == status]
    print_rows(HEAD, [_row(run) for run in found], empty=f"no runs in {root}", titled=True)


def _row(run: RunSummary) -> tuple[str, ...]:
    steps = f"{run.step:,}/{run.total:,}" if run.total else f"{run.step:,}" if run.step else ""
    best = f"{run.metric} {format_figure(run.value)}" if run.value is not None else ""
    return str(run.path), run.task, run.status, steps, best, format_age(run.age)
