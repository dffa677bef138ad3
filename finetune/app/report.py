"""`finetune report RUN`: makes report.html anew from the run folder."""

from __future__ import annotations

from pathlib import Path

from finetune.errors import UserError


def report(run: Path) -> Path:
    """Write RUN/report.html and return its path; works while the run trains, too.

    Raises: UserError if `run` is no run folder, naming the newest one below it if there is any.
    """
    if not (run / "run.json").is_file():
        below = sorted([*run.glob("*/run.json"), *run.glob("*/*/run.json")], key=lambda file: file.parent.name)
        hint = f"did you mean {below[-1].parent}?" if below else "run folders look like runs/<recipe name>/<run id>"
        raise UserError("not a run folder: it has no run.json", where=str(run), remedy=hint)
    from finetune.tracking.report import write_report  # matplotlib: nearly a second

    return write_report(run)
