"""`finetune inspect`: show the data as the model will see it, and find problems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.arguments import RecipeName, Sets
from finetune.cli.program import app, examples
from finetune.recipe.user_path import user_path


@app.command(
    short_help="Show the data as the model will see it, and find problems.",
    epilog=examples(
        "finetune inspect my.yaml",
        "finetune inspect my.yaml --row 17 --split validation",
        "finetune inspect my.yaml --html data.html --strict --set options.max_length=512",
    ),
)
def inspect(
    recipe: RecipeName,
    sets: Sets = None,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="Split whose rows are shown: train, validation or test.")
    ] = "train",
    rows: Annotated[
        int, typer.Option("--rows", min=0, metavar="N", help="Show N first, N random and N longest rows.")
    ] = 2,
    row: Annotated[
        int | None, typer.Option("--row", min=0, metavar="ID", help="Show only the row with this id, in full.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", parser=user_path, metavar="FILE", help="Also write the report as one HTML file."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if there is an error or a warning among the findings.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show what the model will see: tokens with their speakers, those that are learned, cuts, packs, augmented images.

    Reports lengths, labels and characters, and finds rows that teach nothing, leaks between splits, duplicates,
    broken images and more. Encodes the data as train does, into the same cache, and starts no ranks.
    """
    from finetune.app import inspect as verb

    raise typer.Exit(
        verb.inspect(
            recipe=recipe,
            sets=list(sets or ()),
            split=split,
            rows=rows,
            row=row,
            html=html,
            strict=strict,
            as_json=as_json,
        )
    )
