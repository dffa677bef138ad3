"""`finetune runs`: the runs of a folder, the newest first, and why those that failed did."""

from __future__ import annotations

from pathlib import Path

from finetune.app.runs import ROOT
from finetune.app.sweeping.state import FILE as SWEEP
from finetune.app.sweeping.state import read_state
from finetune.errors import UserError
from finetune.terminal import print_line, print_rows
from finetune.tracking.run import nearest_folder
from finetune.tracking.run_summary import RunSummary, find_runs
from finetune.units import format_age, format_figure, format_number

HEAD = ("run", "task", "status", "steps", "best", "started")
RUN_FILE = "run.json"
STATUSES = ("running", "done", "stopped", "failed", "interrupted", "damaged")


def list_runs(root: Path, status: str) -> None:
    """Print one row a run, then a line for each failure and for sweeps that lie deeper. status: only runs of this status;
    "" for all.

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
    everything = find_runs(root)
    found = [run for run in everything if not status or run.status == status]
    print_rows(HEAD, [_row(run) for run in found], empty=f"no runs in {root}", titled=True)
    failures = {run.path: run.failure for run in found if run.failure}
    if status in ("", "failed"):
        failures |= _failed_before(root, {run.path for run in everything})
    for path, why in failures.items():
        print_line(f"failed  {path}: {why}")
    for folder in sorted({path.parent.parent.parent for path in root.glob(f"*/*/*/{RUN_FILE}")}):
        trials = len(list(folder.glob(f"*/*/{RUN_FILE}")))
        print_line(f"{format_number(trials, 'run')} deeper in {folder}: finetune runs {folder}")


def _failed_before(root: Path, known: set[Path]) -> dict[Path, str]:
    """Trials of sweeps that failed before they had a run folder: where it would be -> why."""
    found: dict[Path, str] = {}
    for file in (*root.parent.glob(SWEEP), *root.glob(SWEEP), *root.glob(f"*/{SWEEP}")):
        try:
            failures = read_state(file.parent).failures
        except UserError:
            continue
        for name, why in failures.items():
            path = file.parent / name
            if path not in known and (path == root or root in path.parents) and not (path / RUN_FILE).exists():
                found[path] = " ".join(why.split())
    return found


def _row(run: RunSummary) -> tuple[str, ...]:
    steps = f"{run.step:,}/{run.total:,}" if run.total else f"{run.step:,}" if run.step else ""
    best = f"{run.metric} {format_figure(run.value)}" if run.value is not None else ""
    return str(run.path), run.task, run.status, steps, best, format_age(run.age)
