"""Arguments that several commands take, and how a shell completes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.recipe.user_path import user_path


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes, YAML files and folders that start with the typed text."""
    from finetune.recipe.shelf import list_recipes

    names = [recipe.name for recipe in list_recipes() if recipe.name.startswith(incomplete)]
    typed = Path(incomplete)
    folder, prefix = (typed, "") if incomplete.endswith("/") else (typed.parent, typed.name)
    if folder.is_dir():
        for item in sorted(folder.iterdir()):
            if item.name.startswith(prefix) and not item.name.startswith("."):
                if item.is_dir():
                    names.append(f"{item}/")
                elif item.suffix in (".yaml", ".yml"):
                    names.append(str(item))
    return list(dict.fromkeys(names))


def complete_task(incomplete: str) -> list[str]:
    """Names of tasks that begin so, for the shell's completion."""
    from finetune.tasks import CARDS

    return [name for name in CARDS if name.startswith(incomplete)]


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Path to a YAML file, or the name of a shipped recipe.", autocompletion=complete_recipe
    ),
]
RunFolder = Annotated[Path, typer.Argument(parser=user_path, metavar="RUN", help="Run folder: runs/<recipe>/<run id>.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key. Can be repeated."),
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, metavar="N", help="Number of ranks. Default: from the recipe.")
]
Checkpoint = Annotated[
    str, typer.Option("--checkpoint", metavar="NAME", help="best, latest, or the name of a checkpoint.")
]
