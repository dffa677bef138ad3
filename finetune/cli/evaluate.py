"""`finetune evaluate`: evaluate a checkpoint of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune.cli.arguments import Checkpoint, Processes, RunFolder, Sets
from finetune.cli.program import app, examples


@app.command(
    short_help="Evaluate a checkpoint of a run.",
    epilog=examples(
        "finetune evaluate runs/quickstart/20260101-120000",
        "finetune evaluate runs/my/20260101-120000 --checkpoint latest --split test",
        "finetune evaluate runs/my/20260101-120000 --data other.csv",
        "finetune evaluate runs/my/20260101-120000 --data other.txt --read format=csv",
    ),
)
def evaluate(
    run: RunFolder,
    checkpoint: Checkpoint = "best",
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="validation, test or train; default: validation.")
    ] = "",
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="FILE", help="Evaluate this data in place of a split; can be given several times."
        ),
    ] = None,
    read: Annotated[
        list[str] | None,
        typer.Option("--read", metavar="KEY=VALUE", help="How --data is read, such as format=csv. Can be repeated."),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Folder below evaluations/; default: checkpoint and data.")
    ] = "",
    sets: Sets = None,
    processes: Processes = None,
) -> None:
    """Evaluate a checkpoint of a run, on one of its splits or on other data. Needs only the run folder.

    Figures and predictions go to evaluations/NAME of the run folder and never over those of the training.
    """
    from finetune.app.dispatch import run_verb

    run_verb(
        "evaluate",
        run=run,
        checkpoint=checkpoint,
        split=split,
        data=list(data or ()),
        read=list(read or ()),
        name=name,
        sets=list(sets or ()),
        processes=processes,
    )
