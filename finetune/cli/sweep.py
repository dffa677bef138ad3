"""`finetune sweep`: search for the best values of a recipe's keys."""

from __future__ import annotations

from finetune.app.sweeping.options import SweepOptions
from finetune.cli.fields import takes_fields
from finetune.cli.program import app, examples
from finetune.cli.sweep_parameters import PARAMETERS


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
@takes_fields(SweepOptions, PARAMETERS)
def sweep(options: SweepOptions) -> None:
    """Train a recipe with many values of its keys, each in a run of its own, and name the best.

    At 1/8, 1/4 and 1/2 of the schedule, say, the better half of the trials goes on; the others stay paused with a
    checkpoint. The same command resumes a sweep that was stopped or killed.
    """
    from finetune.app import sweep as verb

    verb.sweep(options)
