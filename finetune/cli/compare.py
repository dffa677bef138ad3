"""`finetune compare`: what differs between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.program import app, examples
from finetune.recipe.user_path import user_path


@app.command(
    short_help="Show what differs between runs.",
    epilog=examples(
        "finetune compare runs/my/20260101-120000 runs/my/20260102-120000",
        "finetune compare runs/my/* --html compared.html",
    ),
)
def compare(
    runs: Annotated[list[Path], typer.Argument(parser=user_path, metavar="RUN...", help="Two or more run folders.")],
    html: Annotated[
        Path | None,
        typer.Option("--html", parser=user_path, metavar="FILE", help="Also write the comparison as one HTML file."),
    ] = None,
) -> None:
    """Show what differs between runs in recipe, data, versions, machine and figures.

    The first two runs are also compared example by example, if they were evaluated on the same data: differences of
    metrics with a paired bootstrap interval, and the examples that got better and worse.
    """
    from finetune.app import compare as verb

    verb.compare(runs, html)
