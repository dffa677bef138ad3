"""The parameters of `finetune serve`: how each field of ServeOptions is given on the command line, and its help."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from finetune.cli.arguments import Checkpoint, complete_task
from finetune.cli.piece_arguments import Block, MaxBoxes, Merge, Overlap, Stride, Tile, WholeImage


class Precision(StrEnum):
    """Of weights and computation."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Quantization(StrEnum):
    """Of weights."""

    none = "none"
    four = "4bit"
    eight = "8bit"


# In the order of the help page.
PARAMETERS: dict[str, Any] = {
    "model": Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="Run folder, model folder or hub id.")],
    "host": Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")],
    "port": Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port to listen on; 0: any that is free.")
    ],
    "replicas": Annotated[
        int | None,
        typer.Option(
            "--replicas",
            min=1,
            max=64,
            metavar="N",
            help="Copies of the model, a process each. Default: one on each GPU.",
        ),
    ],
    "layers": Annotated[
        int,
        typer.Option(
            "--layers", min=1, max=64, metavar="N", help="GPUs that share the layers of one copy of the model."
        ),
    ],
    "checkpoint": Checkpoint,
    "precision": Annotated[
        Precision | None, typer.Option("--precision", help="Of weights and computation. Default: as it was trained.")
    ],
    "quantization": Annotated[
        Quantization | None, typer.Option("--quantization", help="Of weights. Default: as it was trained.")
    ],
    "task": Annotated[
        str,
        typer.Option(
            "--task",
            metavar="TASK",
            help="Task of a model folder that does not say it. Default: by its configuration.",
            autocompletion=complete_task,
        ),
    ],
    "name": Annotated[
        str,
        typer.Option(
            "--name", metavar="NAME", help="What clients call the model. Default: the recipe's name, or the folder's."
        ),
    ],
    "api_key_env": Annotated[
        str,
        typer.Option("--api-key-env", metavar="NAME", help="Environment variable with the key that clients must send."),
    ],
    "allow_unauthenticated": Annotated[
        bool, typer.Option("--allow-unauthenticated", help="Listen on an address of the network without a key.")
    ],
    "allow_host": Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Name that the Host header may have, besides that of --host; can be given several times.",
        ),
    ],
    "max_body_mib": Annotated[
        int, typer.Option("--max-body-mib", min=1, metavar="N", help="Largest body of a request, in MiB.")
    ],
    "max_rows": Annotated[int, typer.Option("--max-rows", min=1, metavar="N", help="Most rows of a request.")],
    "max_waiting": Annotated[
        int,
        typer.Option("--max-waiting", min=1, metavar="N", help="Rows that may wait, over all requests; more get 429."),
    ],
    "max_pixels": Annotated[int, typer.Option("--max-pixels", min=1, metavar="N", help="Most pixels of an image.")],
    "drain_seconds": Annotated[
        float,
        typer.Option("--drain-seconds", min=0, metavar="N", help="Seconds that accepted requests have after SIGTERM."),
    ],
    "tile": Tile,
    "overlap": Overlap,
    "whole_image": WholeImage,
    "max_boxes": MaxBoxes,
    "block": Block,
    "stride": Stride,
    "merge": Merge,
    "max_pieces": Annotated[
        int, typer.Option("--max-pieces", min=1, metavar="N", help="Most tiles or blocks of a row.")
    ],
    "trust_remote_code": Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
    ],
}
