"""The parameters of `finetune sweep`: how each field of SweepOptions is given on the command line, and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.arguments import RecipeName, Sets
from finetune.recipe.user_path import user_path

# In the order of the help page.
PARAMETERS: dict[str, Any] = {
    "recipe": RecipeName,
    "grid": Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="KEY=VALUES",
            help="A recipe key and its values, A,B,...; or with --random a range: uniform(LOW, HIGH), loguniform(LOW, HIGH) "
            "or integers(LOW, HIGH). Can be repeated.",
        ),
    ],
    "draws": Annotated[
        int | None,
        typer.Option("--random", min=1, metavar="N", help="Try N random points of the space instead of all."),
    ],
    "seed": Annotated[int, typer.Option("--random-seed", metavar="N", help="Seed of --random.")],
    "metric": Annotated[
        str,
        typer.Option("--metric", metavar="NAME", help="Metric to compare by. Default: evaluation.best of the recipe."),
    ],
    "halving": Annotated[
        bool,
        typer.Option(
            "--halving/--no-halving", help="Pause the worse half at each rung, or train all trials to the end."
        ),
    ],
    "parallel": Annotated[
        int | None,
        typer.Option(
            "--parallel",
            min=1,
            max=1_024,
            metavar="N",
            help="Trials at a time. Default: as many as the GPUs hold; 1 on a CPU.",
        ),
    ],
    "processes": Annotated[
        int | None,
        typer.Option("--processes", min=1, metavar="N", help="Ranks of each trial. Default: from the recipe, or 1."),
    ],
    "sets": Sets,
    "retry_failed": Annotated[
        bool, typer.Option("--retry-failed", help="When resuming, also start the trials again that failed.")
    ],
    "sweep_dir": Annotated[
        Path | None,
        typer.Option(
            "--sweep-dir",
            parser=user_path,
            metavar="DIR",
            help="Folder of the sweep. Default: runs/<recipe>-sweeps/<sweep id>.",
        ),
    ],
    "wandb_sweep": Annotated[
        Path | None,
        typer.Option(
            "--wandb-sweep",
            parser=user_path,
            metavar="FILE",
            help="Only write the space as a W&B sweep for `wandb agent`.",
        ),
    ],
}
