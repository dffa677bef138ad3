"""`finetune predict`: answers of a model for new data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.arguments import Checkpoint
from finetune.cli.program import app, examples
from finetune.recipe.trust import is_trusted
from finetune.recipe.user_path import user_path


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
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=user_path, metavar="FILE", help="File of the answers: .jsonl, .csv or .parquet."
        ),
    ],
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
        list[str] | None,
        typer.Option("--keep", metavar="COLUMN[=NAME]", help="Input column to copy, or all. Repeatable."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns", metavar="ROLE=COLUMN", help="Column of a role, such as text=review. Can be repeated."
        ),
    ] = None,
    read: Annotated[
        list[str] | None,
        typer.Option("--read", metavar="KEY=VALUE", help="How data is read, such as format=csv. Can be repeated."),
    ] = None,
    embed: Annotated[
        bool, typer.Option("--embed", help="Answer with the mean of the last hidden states, of an encoder.")
    ] = False,
    normalize: Annotated[bool, typer.Option("--normalize", help="With --embed: embeddings of length 1.")] = False,
    draw: Annotated[
        Path | None,
        typer.Option(
            "--draw", parser=user_path, metavar="DIR", help="Folder for pictures of the images with their boxes."
        ),
    ] = None,
    task: Annotated[
        str, typer.Option("--task", metavar="NAME", help="Task of a model that was not trained by finetune.")
    ] = "",
    tile: Annotated[
        int | None, typer.Option("--tile", metavar="PIXELS", help="Cut large images into tiles of this side.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option("--overlap", metavar="SHARE", help="Share of a tile that neighbors share: 0.2.")
    ] = None,
    whole_image: Annotated[
        bool, typer.Option("--whole-image/--no-whole-image", help="Beside its tiles, answer the whole image.")
    ] = True,
    max_boxes: Annotated[
        int | None, typer.Option("--max-boxes", metavar="N", help="Most boxes of an image that is cut: 1000.")
    ] = None,
    block: Annotated[
        int | None, typer.Option("--block", metavar="TOKENS", help="Cut long texts into blocks of this length.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", metavar="TOKENS", help="Tokens that neighboring blocks share.")
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option("--merge", metavar="WAY", help="Scores of pieces become one by mean, max or head_tail."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, metavar="N", help="Most tokens of a reply.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, metavar="T", help="Of sampling; 0: the likeliest tokens.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", metavar="P", help="Sample from the likeliest tokens with this probability."),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", metavar="X", help="More than 1: tokens are repeated less.")
    ] = None,
    beams: Annotated[
        int | None, typer.Option("--beams", min=1, metavar="N", help="Sequences of a beam search.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="Text that ends a reply. Can be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Seed of sampling.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="NAME", help="fp32, bf16 or fp16. Default: as trained.")
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option("--quantization", metavar="NAME", help="Of weights: none, 8bit or 4bit. Default: as trained."),
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
    slices: Annotated[
        int, typer.Option("--slices", min=1, metavar="N", help="Ranks that hold slices of each layer of one model.")
    ] = 1,
    layers: Annotated[
        int, typer.Option("--layers", min=1, metavar="N", help="GPUs that share the layers of one model.")
    ] = 1,
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
    from finetune.app.predict_options import PredictOptions, check_options

    options = PredictOptions(
        model=model,
        data=tuple(data),
        output=output,
        checkpoint=checkpoint,
        top_k=top_k,
        threshold=threshold,
        logprobs=logprobs,
        keep=tuple(keep or ()),
        columns=tuple(columns or ()),
        read=tuple(read or ()),
        embed=embed,
        normalize=normalize,
        draw=draw,
        task=task,
        tile=tile,
        overlap=overlap,
        whole_image=whole_image,
        max_boxes=max_boxes,
        block=block,
        stride=stride,
        merge=merge,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        beams=beams,
        stop=tuple(stop or ()),
        seed=seed,
        precision=precision,
        quantization=quantization,
        budget=budget,
        trust_remote_code=trust_remote_code or is_trusted(),
        processes=processes,
        slices=slices,
        layers=layers,
        max_errors=max_errors,
        restarts=restarts,
        wandb=wandb,
    )
    check_options(options)
    run_verb("predict", options=options)
