"""What a usage error leaves unsaid: keys of a recipe are no options, but are set with --set."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import typer

from finetune.cli.program import app


def key_hint(args: Sequence[str]) -> str:
    """A sentence on --set if an argument names a key of a recipe outside of it; "" otherwise, and if a command takes none."""
    command = getattr(typer.main.get_command(app), "commands", {}).get(args[0] if args else "")
    options = {name for parameter in command.params for name in parameter.opts} if command else set()
    if "--set" not in options:
        return ""
    from finetune.recipe.faults import ELSEWHERE
    from finetune.recipe.recipe import Recipe
    from finetune.recipe.schema import all_keys, schema_of

    keys = [".".join(key) for key in all_keys(schema_of(Recipe))]
    known = ELSEWHERE | {key.rpartition(".")[2]: key for key in reversed(keys)} | {key: key for key in keys}
    for before, arg in pairwise(args):
        name, equals, value = arg.partition("=")
        key = known.get(name.lstrip("-").replace("-", "_"), "")
        if before == "--set" and not equals:
            return f"--set takes KEY=VALUE in one argument: --set {name}=VALUE"
        if before != "--set" and name not in options and (equals or name.startswith("--")) and key and " " not in key:
            return f"Keys of a recipe are set with --set: --set {key}={value or 'VALUE'}"
    return ""
