"""The parameters of `finetune chat`: how each field of ChatOptions is given on the command line, and its help."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from finetune.cli.arguments import Checkpoint

# In the order of the help page.
PARAMETERS: dict[str, Any] = {
    "model": Annotated[
        str,
        typer.Argument(metavar="RUN_OR_MODEL", help="Run folder, exported folder, or a model of the Hugging Face hub."),
    ],
    "checkpoint": Checkpoint,
    "system": Annotated[
        str, typer.Option("--system", metavar="TEXT", help="System prompt. Default: that of the training, if any.")
    ],
    "new_tokens": Annotated[
        int | None, typer.Option("--max-new-tokens", metavar="N", help="Maximum tokens of a reply. Default: 512.")
    ],
    "temperature": Annotated[
        float | None,
        typer.Option(
            "--temperature", metavar="X", help="Sampling temperature. Default: 0, the likeliest token each time."
        ),
    ],
    "top_p": Annotated[
        float | None,
        typer.Option("--top-p", metavar="P", help="Sample from the likeliest tokens with this probability together."),
    ],
    "top_k": Annotated[
        int | None, typer.Option("--top-k", metavar="N", help="Sample from the N likeliest tokens. 0: all.")
    ],
    "repetition_penalty": Annotated[
        float | None,
        typer.Option(
            "--repetition-penalty",
            metavar="X",
            help="Over 1: against tokens that occurred before. Default: the model's.",
        ),
    ],
    "seed": Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of the sampling. Default: 0.")],
    "stops": Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="A text that ends a reply. Can be repeated.")
    ],
    "trust_remote_code": Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
    ],
}
