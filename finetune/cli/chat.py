"""`finetune chat`: a conversation with a model in the terminal."""

from __future__ import annotations

from dataclasses import replace

import typer

from finetune.app.chat_options import ChatOptions
from finetune.cli.chat_parameters import PARAMETERS
from finetune.cli.fields import takes_fields
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
@takes_fields(ChatOptions, PARAMETERS)
def chat(options: ChatOptions) -> None:
    """Talk to a model in the terminal: replies appear as they are written, with the model's own chat template.

    /reset forgets the conversation, /exit or Ctrl-D leaves. Ctrl-C stops a reply; at the prompt it leaves. If the
    conversation becomes longer than the model reads, the oldest turns are left out, which is reported. In a pipe, one line
    is one turn.
    """
    from finetune.app.model_places import check_places

    check_places(options.model)
    from finetune.app.chat import chat as verb  # torch: seconds, which a wrong name need not wait for

    code = verb(replace(options, trust_remote_code=options.trust_remote_code or is_trusted()))
    if code:
        raise typer.Exit(code)
