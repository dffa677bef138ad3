"""The parameters of `finetune predict`: how each field of PredictOptions is given on the command line, and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.arguments import Checkpoint
from finetune.cli.piece_arguments import Block, MaxBoxes, MaxPixels, Merge, Overlap, Stride, Tile, WholeImage
from finetune.recipe.user_path import user_path

# In the order of the help page.
PARAMETERS: dict[str, Any] = {
    "model": Annotated[
        str, typer.Argument(metavar="MODEL", help="Run folder, a folder that was exported from one, or a model folder.")
    ],
    "data": Annotated[
        list[str],
        typer.Option("--data", metavar="SOURCE", help="File, folder or hub id; - is standard input. Can be repeated."),
    ],
    "output": Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=user_path, metavar="FILE", help="File of the answers: .jsonl, .csv or .parquet."
        ),
    ],
    "checkpoint": Checkpoint,
    "top_k": Annotated[
        int, typer.Option("--top-k", min=1, metavar="N", help="Classes listed with their scores, the likeliest first.")
    ],
    "threshold": Annotated[
        float | None,
        typer.Option(
            "--threshold", min=0, max=1, metavar="SCORE", help="Lowest score of a box, or of one of several classes."
        ),
    ],
    "logprobs": Annotated[bool, typer.Option("--logprobs", help="Log-probability of each token written.")],
    "keep": Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="COLUMN[=NAME]", help="Input column to copy, or all. Repeatable."),
    ],
    "columns": Annotated[
        list[str] | None,
        typer.Option(
            "--columns", metavar="ROLE=COLUMN", help="Column of a role, such as text=review. Can be repeated."
        ),
    ],
    "read": Annotated[
        list[str] | None,
        typer.Option("--read", metavar="KEY=VALUE", help="How data is read, such as format=csv. Can be repeated."),
    ],
    "embed": Annotated[
        bool, typer.Option("--embed", help="Answer with the mean of the last hidden states, of an encoder.")
    ],
    "normalize": Annotated[bool, typer.Option("--normalize", help="With --embed: embeddings of length 1.")],
    "draw": Annotated[
        Path | None,
        typer.Option(
            "--draw", parser=user_path, metavar="DIR", help="Folder for pictures of the images with their boxes."
        ),
    ],
    "task": Annotated[
        str, typer.Option("--task", metavar="NAME", help="Task of a model that was not trained by finetune.")
    ],
    "tile": Tile,
    "overlap": Overlap,
    "whole_image": WholeImage,
    "max_pixels": MaxPixels,
    "max_boxes": MaxBoxes,
    "block": Block,
    "stride": Stride,
    "merge": Merge,
    "max_new_tokens": Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, metavar="N", help="Most tokens of a reply.")
    ],
    "temperature": Annotated[
        float | None, typer.Option("--temperature", min=0, metavar="T", help="Of sampling; 0: the likeliest tokens.")
    ],
    "top_p": Annotated[
        float | None,
        typer.Option("--top-p", metavar="P", help="Sample from the likeliest tokens with this probability."),
    ],
    "repetition_penalty": Annotated[
        float | None, typer.Option("--repetition-penalty", metavar="X", help="More than 1: tokens are repeated less.")
    ],
    "beams": Annotated[int | None, typer.Option("--beams", min=1, metavar="N", help="Sequences of a beam search.")],
    "stop": Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="Text that ends a reply. Can be repeated.")
    ],
    "seed": Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Seed of sampling.")],
    "precision": Annotated[
        str | None, typer.Option("--precision", metavar="NAME", help="fp32, bf16 or fp16. Default: as trained.")
    ],
    "quantization": Annotated[
        str | None,
        typer.Option("--quantization", metavar="NAME", help="Of weights: none, 8bit or 4bit. Default: as trained."),
    ],
    "budget": Annotated[
        int | None,
        typer.Option(
            "--budget", min=1, metavar="N", help="Tokens or pixels computed together. Default: by the device."
        ),
    ],
    "trust_remote_code": Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ],
    "processes": Annotated[
        int | None, typer.Option("--processes", min=1, metavar="N", help="Number of ranks. Default: one per GPU.")
    ],
    "slices": Annotated[
        int, typer.Option("--slices", min=1, metavar="N", help="Ranks that hold slices of each layer of one model.")
    ],
    "layers": Annotated[
        int, typer.Option("--layers", min=1, metavar="N", help="GPUs that share the layers of one model.")
    ],
    "stages": Annotated[
        int,
        typer.Option(
            "--stages", min=1, metavar="N", help="Ranks that hold a part each of one image classifier or detector."
        ),
    ],
    "max_errors": Annotated[
        int | None,
        typer.Option("--max-errors", min=0, metavar="N", help="End with code 1 once more than N rows have no answer."),
    ],
    "restarts": Annotated[
        int, typer.Option("--restarts", min=0, metavar="N", help="Restart up to N times after a rank failure.")
    ],
    "wandb": Annotated[
        str, typer.Option("--wandb", metavar="MODE", help="Log the figures to W&B: auto, online, offline or off.")
    ],
}
