"""`finetune recipes`: list, show and write recipes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.arguments import RecipeName, Sets, complete_task
from finetune.cli.program import SETTINGS, app, examples
from finetune.recipe.user_path import user_path
from finetune.terminal import print_rows, printable, say

recipes = typer.Typer(
    name="recipes",
    help="List, show and write recipes.",
    epilog=examples("finetune recipes list", "finetune recipes show quickstart --explain"),
    **SETTINGS,
)
app.add_typer(recipes)

WIDE = 120  # columns of a terminal that has space for the tasks of recipes


@recipes.command("list", epilog=examples("finetune recipes list", "finetune train NAME"))
def list_recipes() -> None:
    """List the shipped recipes. In a pipe: one line each, separated by tabs: name, task, summary."""
    from finetune.app import recipes as verb

    empty = "this installation has no shipped recipes"
    rows = verb.list_recipes()
    if sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE:  # names begin with the task
        print_rows(("recipe", "what it does"), [(name, summary) for name, _, summary in rows], empty=empty)
    else:
        print_rows(("recipe", "task", "what it does"), rows, empty=empty)


@recipes.command(
    "show",
    short_help="Show a recipe as written, resolved, or explained.",
    epilog=examples(
        "finetune recipes show quickstart",
        "finetune recipes show my.yaml --explain --set training.epochs=5",
        "finetune recipes show my.yaml --resolved > resolved.yaml",
    ),
)
def show_recipe(
    recipe: RecipeName,
    explain: Annotated[bool, typer.Option("--explain", help="Show every resolved value and its origin.")] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="Show it as YAML with every value explicit.")] = False,
    sets: Sets = None,
) -> None:
    """Show a recipe as written. Resolved or explained, it is also checked, as `train` would check it."""
    from finetune.app import recipes as verb

    if not (explain or resolved or sets):
        typer.echo(printable(verb.read_recipe(recipe)), nl=False)
        return
    loaded = verb.resolve_recipe(recipe, list(sets or ()))
    if explain:
        print_rows(("key", "value", "from"), loaded.explain())
    else:
        typer.echo(loaded.dump_yaml(), nl=False)
    for warning in loaded.warnings:
        say(f"warning: {warning}")


@recipes.command(
    "schema",
    short_help="Print the JSON Schema of recipes, for editors.",
    epilog=examples("finetune recipes schema --output recipe.schema.json"),
)
def show_schema(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", parser=user_path, metavar="FILE", help="Write to this file instead of printing."
        ),
    ] = None,
) -> None:
    """Print the JSON Schema of recipes, which lets editors complete and check keys.

    A recipe refers to it in its first line: # yaml-language-server: $schema=recipe.schema.json
    """
    from finetune.app import recipes as verb

    if output is None:
        typer.echo(verb.schema_text(), nl=False)
    else:
        typer.echo(f"wrote {verb.write_schema(output)}")


@recipes.command(
    "new",
    short_help="Write a starter recipe for your own data.",
    epilog=examples(
        "finetune recipes new text_classification --data reviews.csv --output reviews.yaml",
        "finetune recipes new causal_lm --data chats.jsonl --model Qwen/Qwen2.5-0.5B-Instruct",
    ),
)
def new_recipe(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Task to train for.", autocompletion=complete_task)],
    data: Annotated[str, typer.Option("--data", metavar="SOURCE", help="Training data: file, folder or hub id.")] = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=user_path, metavar="FILE", help="File to write. Default: TASK.yaml."),
    ] = None,
    model: Annotated[str, typer.Option("--model", metavar="SOURCE", help="Model to fine-tune: hub id or folder.")] = "",
) -> None:
    """Write a starter recipe for your own data, with columns guessed from the file. Never overwrites a file."""
    from finetune.app import recipes as verb

    written = verb.new_recipe(task, data=data, output=output, model=model)
    if written.unread:
        say(f"warning: the columns are not known, for the data cannot be read: {written.unread}")
    path = written.path
    lines = path.read_text(encoding="utf-8").splitlines()
    gaps = ", ".join(f"line {number}" for number, line in enumerate(lines, start=1) if "# fill in" in line)
    todo = f"fill it in ({gaps})" if gaps else "review it"
    typer.echo(f"wrote {path}\nNext: {todo}, then run  finetune inspect {path}  and  finetune train {path}")
