"""`finetune serve`: answers over HTTP."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from finetune.cli.arguments import Checkpoint, complete_task
from finetune.cli.piece_arguments import Block, MaxBoxes, Merge, Overlap, Stride, Tile, WholeImage
from finetune.cli.program import app, examples
from finetune.recipe.trust import is_trusted


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


@app.command(
    short_help="Serve a model over HTTP.",
    epilog=examples(
        "finetune serve runs/quickstart/20260101-120000",
        "finetune serve runs/my/20260101-120000/model --port 8080 --replicas 2",
        "MY_KEY=$(openssl rand -hex 24) finetune serve exported/ --host 0.0.0.0 --api-key-env MY_KEY",
    ),
)
def serve(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="Run folder, model folder or hub id.")],
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port to listen on; 0: any that is free.")
    ] = 8000,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            min=1,
            max=64,
            metavar="N",
            help="Copies of the model, a process each. Default: one on each GPU.",
        ),
    ] = None,
    layers: Annotated[
        int,
        typer.Option(
            "--layers", min=1, max=64, metavar="N", help="GPUs that share the layers of one copy of the model."
        ),
    ] = 1,
    checkpoint: Checkpoint = "best",
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="Of weights and computation. Default: as it was trained.")
    ] = None,
    quantization: Annotated[
        Quantization | None, typer.Option("--quantization", help="Of weights. Default: as it was trained.")
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            "--task",
            metavar="TASK",
            help="Task of a model folder that does not say it. Default: by its configuration.",
            autocompletion=complete_task,
        ),
    ] = "",
    name: Annotated[
        str,
        typer.Option(
            "--name", metavar="NAME", help="What clients call the model. Default: the recipe's name, or the folder's."
        ),
    ] = "",
    api_key_env: Annotated[
        str,
        typer.Option("--api-key-env", metavar="NAME", help="Environment variable with the key that clients must send."),
    ] = "",
    allow_unauthenticated: Annotated[
        bool,
        typer.Option("--allow-unauthenticated", help="Listen on an address of the network without a key."),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Name that the Host header may have, besides that of --host; can be given several times.",
        ),
    ] = None,
    max_body_mib: Annotated[
        int, typer.Option("--max-body-mib", min=1, metavar="N", help="Largest body of a request, in MiB.")
    ] = 32,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, metavar="N", help="Most rows of a request.")] = 1024,
    max_waiting: Annotated[
        int,
        typer.Option("--max-waiting", min=1, metavar="N", help="Rows that may wait, over all requests; more get 429."),
    ] = 4096,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, metavar="N", help="Most pixels of an image.")
    ] = 40_000_000,
    drain_seconds: Annotated[
        float,
        typer.Option("--drain-seconds", min=0, metavar="N", help="Seconds that accepted requests have after SIGTERM."),
    ] = 30.0,
    tile: Tile = None,
    overlap: Overlap = None,
    whole_image: WholeImage = True,
    max_boxes: MaxBoxes = None,
    block: Block = None,
    stride: Stride = None,
    merge: Merge = None,
    max_pieces: Annotated[
        int, typer.Option("--max-pieces", min=1, metavar="N", help="Most tiles or blocks of a row.")
    ] = 1024,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
    ] = False,
) -> None:
    """Serve a model over HTTP: /predict, or the OpenAI chat and completions API for models that write text.

    Requests are batched by cost as they come. / is a page to try the model by hand, /docs describes the endpoints, /health
    and /metrics are for operators. Needs the extra `serve`. See docs/serve.md.
    """
    from finetune.app import serve as verb

    source = verb.ServedSource(
        source=model,
        checkpoint=checkpoint,
        task=task,
        precision=precision.value if precision else None,
        quantization=quantization.value if quantization else None,
        trust_remote_code=trust_remote_code or is_trusted(),
        name=name,
        pixels=max_pixels,
        pieces={
            "tile": tile,
            "overlap": overlap,
            "whole_image": None if whole_image else False,
            "max_boxes": max_boxes,
            "block": block,
            "stride": stride,
            "merge": merge,
            "most_pieces": max_pieces,
        },
    )
    limits = {
        "body_bytes": max_body_mib << 20,
        "rows": max_rows,
        "waiting": max_waiting,
        "pixels": max_pixels,
        "drain_seconds": drain_seconds,
    }
    raise typer.Exit(
        verb.serve(
            source=source,
            host=host,
            port=port,
            replicas=replicas,
            layers=layers,
            api_key_env=api_key_env,
            allow_unauthenticated=allow_unauthenticated,
            allow_hosts=list(allow_host or ()),
            limits=limits,
        )
    )
