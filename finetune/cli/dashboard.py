"""`finetune dashboard`: a W&B workspace for runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.program import app, examples
from finetune.recipe.user_path import user_path


@app.command(
    short_help="Save a W&B workspace for a run or a group of runs.",
    epilog=examples(
        "finetune dashboard runs/my/20260101-120000",
        "finetune dashboard runs/my --spec workspace.json",
    ),
)
def dashboard(
    target: Annotated[
        Path,
        typer.Argument(
            parser=user_path, metavar="RUN|GROUP", help="A run folder, or a folder with runs, such as runs/<recipe>."
        ),
    ],
    spec: Annotated[
        Path | None,
        typer.Option(
            "--spec",
            parser=user_path,
            metavar="FILE",
            help="Write the specification as JSON instead of saving it; needs no network.",
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="Name of the workspace.")] = "",
) -> None:
    """Save a W&B workspace laid out by what the runs have logged: loss and metrics, where a step's seconds go, memory, samples,
    confusion matrix, worst examples, pictures.

    Of a group, it shows all runs of the W&B group, later ones too. Needs the extra `dashboards` and an API key. Reports of
    W&B are not made: they cannot be built without a server.
    """
    from finetune.app import dashboard as verb

    verb.dashboard(target, spec, name)
