"""How large images and long texts are cut: arguments of `finetune predict` and `finetune serve`."""

from __future__ import annotations

from typing import Annotated

import typer

Tile = Annotated[int | None, typer.Option("--tile", metavar="PIXELS", help="Cut large images into tiles of this side.")]
Overlap = Annotated[
    float | None, typer.Option("--overlap", metavar="SHARE", help="Share of a tile that neighbors share: 0.2.")
]
WholeImage = Annotated[
    bool, typer.Option("--whole-image/--no-whole-image", help="Beside its tiles, answer the whole image.")
]
MaxBoxes = Annotated[
    int | None, typer.Option("--max-boxes", metavar="N", help="Most boxes of an image that is cut: 1000.")
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        metavar="N",
        help="Most pixels of an image file; larger ones are bad rows. Default: 178956970.",
    ),
]
Block = Annotated[
    int | None, typer.Option("--block", metavar="TOKENS", help="Cut long texts into blocks of this length.")
]
Stride = Annotated[int | None, typer.Option("--stride", metavar="TOKENS", help="Tokens that neighboring blocks share.")]
Merge = Annotated[
    str | None,
    typer.Option("--merge", metavar="WAY", help="Scores of pieces become one by mean, max or head_tail."),
]
