"""`finetune doctor`: report what this machine has and what is missing."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune.cli.program import app, examples


@app.command(
    short_help="Check this machine and report what is missing.",
    epilog=examples("finetune doctor", "finetune doctor --build"),
)
def doctor(
    build: Annotated[
        bool, typer.Option("--build", help="Build DeepSpeed's C++ extensions now instead of during the first training.")
    ] = False,
) -> None:
    """Report what this machine has, what is missing, and how to install it. Needs no network."""
    from finetune.app import doctor as verb

    raise typer.Exit(verb.doctor(build=build))
