"""`finetune serve`: answers over HTTP."""

from __future__ import annotations

from dataclasses import replace

import typer

from finetune.app.serve_options import ServeOptions
from finetune.cli.fields import takes_fields
from finetune.cli.program import app, examples
from finetune.cli.serve_parameters import PARAMETERS
from finetune.recipe.trust import is_trusted


@app.command(
    short_help="Serve a model over HTTP.",
    epilog=examples(
        "finetune serve runs/quickstart/20260101-120000",
        "finetune serve runs/my/20260101-120000/model --port 8080 --replicas 2",
        "MY_KEY=$(openssl rand -hex 24) finetune serve exported/ --host 0.0.0.0 --api-key-env MY_KEY",
    ),
)
@takes_fields(ServeOptions, PARAMETERS)
def serve(options: ServeOptions) -> None:
    """Serve a model over HTTP: /predict, or the OpenAI chat and completions API for models that write text.

    Requests are batched by cost as they come. / is a page to try the model by hand, /docs describes the endpoints, /health
    and /metrics are for operators. Needs the extra `serve`. See docs/serve.md.
    """
    from finetune.app import serve as verb

    trusted = options.trust_remote_code or is_trusted()
    raise typer.Exit(verb.serve(replace(options, trust_remote_code=trusted)))
