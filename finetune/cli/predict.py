"""`finetune predict`: answers of a model for new data."""

from __future__ import annotations

from dataclasses import replace

from finetune.app.predict_options import PredictOptions, check_options
from finetune.cli.fields import takes_fields
from finetune.cli.predict_parameters import PARAMETERS
from finetune.cli.program import app, examples
from finetune.recipe.trust import is_trusted


@app.command(
    short_help="Answer new data with a trained model.",
    epilog=examples(
        "finetune predict runs/my/20260101-120000 --data new.jsonl --output answers.jsonl",
        "finetune predict my-model --data a.csv --data b.csv --output answers.jsonl --processes 8 --keep id",
        "cat new.jsonl | finetune predict my-model --data - --output answers.jsonl",
        "torchrun --nproc_per_node 8 -m finetune predict my-model --data new.jsonl --output answers.jsonl",
    ),
)
@takes_fields(PredictOptions, PARAMETERS)
def predict(options: PredictOptions) -> None:
    """Answer every row of the data, in its order, each row once, on any number of ranks.

    A row that cannot be answered has an error in place of an answer, and ends only itself. After any end, also a kill,
    the same command goes on where it was, on the same or another number of ranks.
    """
    from finetune.app.dispatch import run_verb

    check_options(options)
    run_verb("predict", options=replace(options, trust_remote_code=options.trust_remote_code or is_trusted()))
