"""`finetune verify`: check that all layouts of a recipe give the same numbers."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune.cli.arguments import RecipeName, Sets
from finetune.cli.program import app, examples


@app.command(
    short_help="Check that all layouts give the same numbers.",
    epilog=examples(
        "finetune verify quickstart",
        "finetune verify my.yaml --steps 5 --set model.config.num_hidden_layers=3",
        "finetune verify my.yaml --full",
    ),
)
def verify(
    recipe: RecipeName,
    sets: Sets = None,
    full: Annotated[
        bool, typer.Option("--full", help="Use the model at full size with its weights. Default: a small one.")
    ] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Steps per layout.")] = 3,
    processes: Annotated[
        int, typer.Option("--processes", min=2, max=8, metavar="N", help="Maximum number of ranks.")
    ] = 2,
) -> None:
    """Train a few steps of a recipe on one and on several ranks, with gradient accumulation, with ZeRO 0 to 3, and in
    plain PyTorch in float64. Losses, gradient norms, weights and metrics must agree. Runs on the CPU without dropout.
    """
    from finetune.app.dispatch import run_verb

    run_verb("verify", recipe=recipe, sets=list(sets or ()), full=full, steps=steps, processes=processes)
