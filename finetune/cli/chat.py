"""`finetune chat`: a conversation with a model in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune.cli.arguments import Checkpoint
from finetune.cli.program import app, examples
from finetune.recipe.trust import is_trusted


@app.command(
    short_help="Talk to a model in the terminal.",
    epilog=examples(
        "finetune chat runs/my/20260101-120000",
        'finetune chat my-model --system "Answer in one sentence." --temperature 0.7 --seed 1',
        "finetune chat my-model < questions.txt     one line is one turn",
    ),
)
def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_MODEL", help="Run folder, exported folder, or a model of the Hugging Face hub."),
    ],
    checkpoint: Checkpoint = "best",
    system: Annotated[
        str, typer.Option("--system", metavar="TEXT", help="System prompt. Default: that of the training, if any.")
    ] = "",
    new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", metavar="N", help="Maximum tokens of a reply. Default: 512.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", metavar="X", help="Sampling temperature. Default: 0, the likeliest token each time."
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", metavar="P", help="Sample from the likeliest tokens with this probability together."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="N", help="Sample from the N likeliest tokens. 0: all.")
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            "--repetition-penalty",
            metavar="X",
            help="Over 1: against tokens that occurred before. Default: the model's.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of the sampling. Default: 0.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="A text that ends a reply. Can be repeated.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
    ] = False,
) -> None:
    """Talk to a model in the terminal: replies appear as they are written, with the model's own chat template.

    /reset forgets the conversation, /exit or Ctrl-D leaves. Ctrl-C stops a reply; at the prompt it leaves. If the
    conversation becomes longer than the model reads, the oldest turns are left out, which is reported. In a pipe, one line
    is one turn.
    """
    from finetune.app.chat import chat as verb

    code = verb(
        model,
        checkpoint=checkpoint,
        system=system,
        new_tokens=new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stops=list(stop or ()),
        trust_remote_code=trust_remote_code or is_trusted(),
    )
    if code:
        raise typer.Exit(code)
