"""`finetune report`: write the report of a run or of a group again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.program import app, examples
from finetune.recipe.user_path import user_path


@app.command(
    short_help="Write the report of a run, or of a group of runs.",
    epilog=examples(
        "finetune report runs/my/20260101-120000",
        "finetune report runs/my/20260101-120000 --open",
        "finetune report runs/my",
    ),
)
def report(
    target: Annotated[
        Path,
        typer.Argument(
            parser=user_path, metavar="RUN|GROUP", help="A run folder, or a folder with runs, such as runs/<recipe>."
        ),
    ],
    open_: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Write report.html again from the logs of a run, and print its path.

    Of a folder with several runs: one page that lists them, the best first, and compares them.
    """
    from finetune.app import report as verb

    path = verb.report(target)
    typer.echo(path)
    if open_:
        typer.launch(str(path))
