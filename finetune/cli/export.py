"""`finetune export`: a folder that from_pretrained can load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.arguments import Checkpoint, RunFolder
from finetune.cli.program import app, examples
from finetune.recipe.user_path import user_path


@app.command(
    short_help="Export the model of a run for from_pretrained.",
    epilog=examples(
        "finetune export runs/my/20260101-120000 --output my-model",
        "finetune export runs/my/20260101-120000 --output my-model --checkpoint latest --merge",
    ),
)
def export(
    run: RunFolder,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", parser=user_path, metavar="DIR", help="Output folder. Must be new or empty."),
    ],
    checkpoint: Checkpoint = "best",
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into its base weights.")] = False,
) -> None:
    """Export the model of a run to a folder that from_pretrained of transformers (adapters: of peft) can load."""
    from finetune.app.model_places import check_export

    check_export(run, output)
    from finetune.app import export as verb  # torch: seconds, which a wrong name need not wait for

    verb.export(run, output=output, checkpoint=checkpoint, merge=merge)
