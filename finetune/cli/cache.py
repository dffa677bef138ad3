"""`finetune cache`: list or remove prepared data."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune.cli.program import app, examples


@app.command(
    short_help="List or remove prepared data.",
    epilog=examples("finetune cache", "finetune cache --prune --older-than 7", "finetune cache --prune"),
)
def cache(
    prune: Annotated[bool, typer.Option("--prune", help="Remove entries instead of listing them.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", min=0, metavar="DAYS", help="Only entries that were not used for this many days."),
    ] = None,
) -> None:
    """List the cache of prepared data: what each entry was made from, its size and last use; or remove entries.

    Entries that a running training uses are never removed. What is removed is prepared again when it is needed.
    """
    from finetune.app import cache as verb

    verb.cache(prune=prune, older_than=older_than)
