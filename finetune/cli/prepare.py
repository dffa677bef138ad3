"""`finetune prepare`: read, split and encode the data of a recipe ahead of a training."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune.cli.arguments import RecipeName, Sets
from finetune.cli.program import app, examples


@app.command(
    short_help="Read, split and encode the data of a recipe.",
    epilog=examples(
        "finetune prepare my.yaml",
        "finetune prepare my.yaml --workers 4 --set data.on_bad_row=skip",
    ),
)
def prepare(
    recipe: RecipeName,
    sets: Sets = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=1_024, metavar="N", help="Worker processes. Default: one for each core."),
    ] = None,
) -> None:
    """Prepare the data of a recipe now, without a GPU: read the files, hold out rows, encode every row, report bad ones.

    `finetune train` does the same before it starts the ranks, and finds what was prepared. An interrupted preparation
    continues where it was.
    """
    from finetune.app import prepare as verb

    verb.prepare(recipe=recipe, sets=list(sets or ()), workers=workers)
