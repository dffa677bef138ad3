"""`finetune recipes`: what ships, what a recipe resolves to, its JSON Schema, and a first recipe for one's own data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.formats.parallel_text import is_parallel
from finetune.data.sources.locate import locate
from finetune.data.sources.peek import columns_of
from finetune.data.sources.read_options import asked_sources
from finetune.data.split_names import split_of
from finetune.errors import UserError
from finetune.recipe import shelf
from finetune.recipe.load import LoadedRecipe, load_recipe
from finetune.recipe.paths import is_local, is_pattern
from finetune.recipe.schema import recipes_schema
from finetune.recipe.starter import write_starter
from finetune.recipe.user_path import user_path
from finetune.recipe.yaml import read_document, read_text
from finetune.tasks import CARDS
from finetune.tracking.atomic_files import check_file, publish_text

SCHEMA_FILE = "recipe.schema.json"
RECIPE_KEYS = {"data", "model", "task"}  # a recipe has all of them, a draft at least one


def list_recipes() -> list[tuple[str, str, str]]:
    """Rows of name, task, summary: every recipe that ships."""
    return [(recipe.name, recipe.task, recipe.summary) for recipe in shelf.list_recipes()]


def read_recipe(name: str) -> str:
    """The text of a recipe, comments included. Raises: UserError, also for a file that is no recipe."""
    path = shelf.find_recipe(name)
    if not RECIPE_KEYS & read_document(path).values.keys():
        raise UserError(
            f"{name} is no recipe: it has none of the keys {', '.join(sorted(RECIPE_KEYS))}",
            remedy="`finetune recipes list` shows those that ship, `finetune recipes new` writes one.",
        )
    return read_text(path)


def resolve_recipe(name: str, sets: Sequence[str]) -> LoadedRecipe:
    """The recipe with every value explicit, for any machine. Raises: UserError, RecipeFaults."""
    return load_recipe(shelf.find_recipe(name), sets, CARDS, here=False)


def schema_text() -> str:
    """The JSON Schema of all recipes, for editors."""
    return json.dumps(recipes_schema(CARDS), indent=2, ensure_ascii=False) + "\n"


def write_schema(output: Path) -> Path:
    """Write the JSON Schema; it may replace an older one."""
    check_file(output, '"$schema": ')
    publish_text(output, schema_text())
    return output


@dataclass(frozen=True)
class Starter:
    """A starter recipe that was written. unread: why the columns of its data are not known; None if they are."""

    path: Path
    unread: UserError | None


def new_recipe(task: str, *, data: str, output: Path | None, model: str) -> Starter:
    """Write a starter recipe; never over a file. output: default <task>.yaml in the current folder.

    Data that cannot be read is no reason to write none: the recipe says how it is read.
    Raises: UserError for an unknown task, missing data, or a file that is there already.
    """
    if task not in CARDS:
        raise UserError(f"no task {task}", remedy=f"There are: {', '.join(CARDS)}.")
    if data:
        asked_sources([data])
        _check_presence(data)
    output = output or Path(f"{task}.yaml")
    if output.suffix not in (".yaml", ".yml"):
        raise UserError(f"{output} is no name for a recipe", remedy="Recipes end in .yaml.")
    schema = _from_folder(shelf.shelf_folder("recipes") / SCHEMA_FILE, output.resolve().parent)
    columns, splits, unread = _peek(data)
    text = write_starter(
        CARDS[task],
        data=data,
        columns=columns,
        splits=splits,
        output=output,
        model=model or _usual_model(task),
        schema=schema,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{output} is there already", remedy="Give another --output; nothing was written.") from None
    return Starter(output, unread)


def _check_presence(data: str) -> None:
    path = user_path(data)
    if is_local(data, Path.cwd()) and not path.exists() and not is_pattern(data) and not is_parallel(data):
        raise UserError(f"no data file {path}", remedy="Paths given to --data are relative to the current folder.")


def _peek(data: str) -> tuple[list[str], list[str], UserError | None]:
    """(columns, splits beside train, why neither is known)."""
    try:
        return peek_columns(data), peek_splits(data), None
    except UserError as error:
        return [], [], error


def peek_columns(data: str) -> list[str]:
    """The columns of local data, as `data.train` of a recipe would name it; [] for no data, and for a set of the hub.

    Raises: UserError if it cannot be read.
    """
    if not data or not is_local(data, Path.cwd()):
        return []
    (source,) = asked_sources([data])
    located = locate(source, "train")
    return columns_of(located.files[0], located.format, located.applied_to(source)) if located.files else []


def peek_splits(data: str) -> list[str]:
    """validation and test, if local data holds these splits beside train. Raises: UserError if it cannot be located."""
    if not data or not is_local(data, Path.cwd()):
        return []
    (source,) = asked_sources([data])
    left = {split_of(label) for label in locate(source, "train").left}
    return [split for split in ("validation", "test") if split in left]


def _usual_model(task: str) -> str:
    """The model of the first shipped recipe of this task that starts from weights of the hub, open to everybody."""
    for recipe in shelf.list_recipes():
        if recipe.task != task or "gated" in recipe.path.read_text(encoding="utf-8"):
            continue
        try:
            model = load_recipe(recipe.path, (), CARDS, here=False).recipe.model
        except UserError:
            continue
        if model.init == "pretrained" and ":" not in model.source and not model.source.startswith("/"):
            return model.source
    return ""


def _from_folder(path: Path, folder: Path) -> str:
    """A path as seen from a folder, relative where both share more than the root."""
    if len(Path(os.path.commonpath([path, folder])).parts) > 2:
        return os.path.relpath(path, folder)
    return str(path)
