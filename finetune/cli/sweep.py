"""`finetune sweep`: search for the best values of a recipe's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.arguments import RecipeName, Sets
from finetune.cli.program import app, examples
from finetune.recipe.user_path import user_path


@app.command(
    short_help="Train a recipe with many values of its keys, and find the best.",
    epilog=examples(
        "finetune sweep my.yaml --grid training.learning_rate=1e-5,3e-5,1e-4 --grid seed=1,2",
        "finetune sweep my.yaml --random 20 --grid 'training.learning_rate=loguniform(1e-5, 1e-3)'",
        "finetune sweep my.yaml --grid adapter.rank=4,8,16 --metric loss --parallel 2",
        "finetune sweep my.yaml --grid seed=1,2,3 --no-halving",
        "finetune sweep my.yaml --grid seed=1,2,3 --wandb-sweep sweep.yaml",
    ),
)
def sweep(
    recipe: RecipeName,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="KEY=VALUES",
            help="A recipe key and its values, A,B,...; or with --random a range: uniform(LOW, HIGH), loguniform(LOW, HIGH) "
            "or integers(LOW, HIGH). Can be repeated.",
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option("--random", min=1, metavar="N", help="Try N random points of the space instead of all."),
    ] = None,
    seed: Annotated[int, typer.Option("--random-seed", metavar="N", help="Seed of --random.")] = 0,
    metric: Annotated[
        str,
        typer.Option("--metric", metavar="NAME", help="Metric to compare by. Default: evaluation.best of the recipe."),
    ] = "",
    halving: Annotated[
        bool,
        typer.Option(
            "--halving/--no-halving", help="Pause the worse half at each rung, or train all trials to the end."
        ),
    ] = True,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel",
            min=1,
            max=1_024,
            metavar="N",
            help="Trials at a time. Default: as many as the GPUs hold; 1 on a CPU.",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, metavar="N", help="Ranks of each trial. Default: from the recipe, or 1."),
    ] = None,
    sets: Sets = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="When resuming, also start the trials again that failed.")
    ] = False,
    sweep_dir: Annotated[
        Path | None,
        typer.Option(
            "--sweep-dir",
            parser=user_path,
            metavar="DIR",
            help="Folder of the sweep. Default: runs/<recipe>-sweeps/<sweep id>.",
        ),
    ] = None,
    wandb_sweep: Annotated[
        Path | None,
        typer.Option(
            "--wandb-sweep",
            parser=user_path,
            metavar="FILE",
            help="Only write the space as a W&B sweep for `wandb agent`.",
        ),
    ] = None,
) -> None:
    """Train a recipe with many values of its keys, each in a run of its own, and name the best.

    At 1/8, 1/4 and 1/2 of the schedule, say, the better half of the trials goes on; the others stay paused with a
    checkpoint. The same command resumes a sweep that was stopped or killed.
    """
    from finetune.app import sweep as verb

    verb.sweep(
        recipe=recipe,
        grid=list(grid or ()),
        draws=draws,
        seed=seed,
        sets=list(sets or ()),
        metric=metric,
        halving=halving,
        parallel=parallel,
        processes=processes,
        retry_failed=retry_failed,
        sweep_dir=sweep_dir,
        wandb_sweep=wandb_sweep,
    )
