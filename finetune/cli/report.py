"""`finetune report`: write the report of a run again."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune.cli.arguments import RunFolder
from finetune.cli.program import app, examples


@app.command(
    short_help="Write the report of a run.",
    epilog=examples("finetune report runs/my/20260101-120000", "finetune report runs/my/20260101-120000 --open"),
)
def report(
    run: RunFolder,
    open_: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Write report.html again from the logs of a run, and print its path."""
    from finetune.app import report as verb

    path = verb.report(run)
    typer.echo(path)
    if open_:
        typer.launch(str(path))
