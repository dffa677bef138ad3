"""`finetune logs`: show the logs of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune.cli.arguments import RunFolder
from finetune.cli.program import app, examples


@app.command(
    short_help="Show what the ranks of a run printed.",
    epilog=examples(
        "finetune logs runs/my/20260101-120000",
        "finetune logs runs/my/20260101-120000 --rank 3 -f",
    ),
)
def logs(
    run: RunFolder,
    rank: Annotated[
        int | None, typer.Option("--rank", min=0, metavar="N", help="Only the log of this rank. Default: all logs.")
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, metavar="N", help="Show the last N lines of each.")
    ] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until the run ends or Ctrl-C.")
    ] = False,
) -> None:
    """Show the last lines of the logs of a run: warnings, errors, and what other ranks than 0 printed."""
    from finetune.app import show_logs as verb

    verb.show_logs(run, rank=rank, lines=lines, follow=follow)
