"""`finetune report RUN|GROUP`: makes report.html anew from a run folder, or from the runs below a folder."""

from __future__ import annotations

from pathlib import Path

from finetune.terminal import print_line
from finetune.tracking.journal import describe_unreadable
from finetune.tracking.run import Run


def report(target: Path) -> Path:
    """Write report.html into `target` and return its path; works while a run trains, too.

    target: a run, or a folder with two or more runs below it, whose reports are linked.
    Raises: UserError if `target` is neither, naming the newest run below it if there is any.
    """
    if not (target / "run.json").exists():
        from finetune.tracking.run_summary import find_runs

        runs = find_runs(target)
        if sum(run.status != "damaged" for run in runs) > 1:
            from finetune.tracking.report.comparing import write_group

            return write_group(runs, target)
    run = Run.open(target)
    if damage := describe_unreadable(run.metrics_file):
        print_line(f"note: {damage} of {run.metrics_file}, and left out of the report")
    from finetune.tracking.report import write_report  # matplotlib: nearly a second

    return write_report(target)
