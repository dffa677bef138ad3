"""`finetune predict`: answers of a model for new data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.arguments import Checkpoint
from finetune.cli.program import app, examples


@app.command(
    short_help="Answer new data with a trained model.",
    epilog=examples(
        "finetune predict runs/my/20260101-120000 --data new.jsonl --output answers.jsonl",
        "finetune predict my-model --data a.csv --data b.csv --output answers.jsonl --processes 8 --keep id",
        "cat new.jsonl | finetune predict my-model --data - --output answers.jsonl",
        "torchrun --nproc_per_node 8 -m finetune predict my-model --data new.jsonl --output answers.jsonl",
    ),
)
def predict(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run folder, a folder that was exported from one, or a model folder.")
    ],
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="SOURCE", help="File, folder or hub id; - is standard input. Can be repeated."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File of the answers: .jsonl.")],
    checkpoint: Checkpoint = "best",
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, metavar="N", help="Classes listed with their scores, the likeliest first.")
    ] = 1,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", min=0, max=1, metavar="SCORE", help="Lowest score of a box, or of one of several classes."
        ),
    ] = None,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Log-probability of each token written.")] = False,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="COLUMN", help="Input column to copy. Can be repeated.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="NAME", help="fp32, bf16 or fp16. Default: as trained.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget", min=1, metavar="N", help="Tokens or pixels computed together. Default: by the device."
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, metavar="N", help="Number of ranks. Default: one per GPU.")
    ] = None,
    max_errors: Annotated[
        int | None,
        typer.Option("--max-errors", min=0, metavar="N", help="End with code 1 once more than N rows have no answer."),
    ] = None,
    restarts: Annotated[
        int, typer.Option("--restarts", min=0, metavar="N", help="Restart up to N times after a rank failure.")
    ] = 3,
    wandb: Annotated[
        str, typer.Option("--wandb", metavar="MODE", help="Log the figures to W&B: auto, online, offline or off.")
    ] = "off",
) -> None:
    """Answer every row of the data, in its order, each row once, on any number of ranks.

    A row that cannot be answered has an error in place of an answer, and ends only itself. After any end, also a kill,
    the same command goes on where it was, on the same or another number of ranks.
    """
    from finetune.app.dispatch import run_verb
    from finetune.app.predict_options import PredictOptions

    options = PredictOptions(
        model=model,
        data=tuple(data),
        output=output,
        checkpoint=checkpoint,
        top_k=top_k,
        threshold=threshold,
        logprobs=logprobs,
        keep=tuple(keep or ()),
        precision=precision,
        budget=budget,
        trust_remote_code=trust_remote_code,
        processes=processes,
        max_errors=max_errors,
        restarts=restarts,
        wandb=wandb,
    )
    run_verb("predict", options=options)
