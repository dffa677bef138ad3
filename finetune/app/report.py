"""`finetune report RUN`: makes report.html anew from the run folder."""

from __future__ import annotations

from pathlib import Path

from finetune.tracking.run import Run


def report(run: Path) -> Path:
    """Write RUN/report.html and return its path; works while the run trains, too.

    Raises: UserError if `run` is no run folder, naming the newest one below it if there is any.
    """
    Run.open(run)
    from finetune.tracking.report import write_report  # matplotlib: nearly a second

    return write_report(run)
