"""`finetune runs`: list the runs of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.program import app, examples
from finetune.recipe.user_path import user_path


@app.command(
    short_help="List runs with status, best figure and age.",
    epilog=examples("finetune runs", "finetune runs --status interrupted", "finetune runs /shared/runs"),
)
def runs(
    folder: Annotated[
        Path, typer.Argument(parser=user_path, metavar="[FOLDER]", help="Folder of runs, or of one recipe's runs.")
    ] = Path("runs"),
    status: Annotated[
        str, typer.Option("--status", metavar="STATUS", help="Only running, done, stopped, failed or interrupted runs.")
    ] = "",
) -> None:
    """List runs, the newest start first: task, status, steps, the best evaluation, age.

    A run whose process is gone without an end is called interrupted: the command that started it resumes it.
    """
    from finetune.app import list_runs as verb

    verb.list_runs(folder, status)
