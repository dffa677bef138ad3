"""`finetune train`: train a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.arguments import Processes, RecipeName, Sets
from finetune.cli.program import app, examples
from finetune.recipe.user_path import user_path


@app.command(
    short_help="Train a recipe and write a run folder.",
    epilog=examples(
        "finetune train quickstart",
        "finetune train my.yaml --processes 4 --set training.learning_rate=3e-5 --set training.epochs=5",
        "finetune train my.yaml --set parallel.deepspeed=zero3 --resume never",
        "accelerate launch --num_processes 8 -m finetune train my.yaml",
    ),
)
def train(
    recipe: RecipeName,
    processes: Processes = None,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", parser=user_path, metavar="DIR", help="Run folder. Default: runs/<recipe>/<run id>."),
    ] = None,
    sets: Sets = None,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            metavar="auto|never|PATH",
            help="auto: resume the last unfinished run of this recipe; never: start a new run; or the path of a checkpoint.",
        ),
    ] = "auto",
    data_changed: Annotated[
        bool,
        typer.Option("--data-changed", help="Resume although the data is not that which the run was trained on."),
    ] = False,
    restarts: Annotated[
        int,
        typer.Option(
            "--restarts", min=0, metavar="N", help="Restart automatically up to N times after a rank failure."
        ),
    ] = 0,
) -> None:
    """Train a recipe: launch the processes, train, evaluate, and write a run folder.

    After a stop, the same command resumes at the exact next step. Inside accelerate launch, torchrun, deepspeed or
    srun it runs as one of their workers.
    """
    from finetune.app.dispatch import run_verb

    run_verb(
        "train",
        recipe=recipe,
        sets=list(sets or ()),
        processes=processes,
        run_dir=run_dir,
        resume=resume,
        restarts=restarts,
        data_changed=data_changed,
    )
