"""What ships with the package: recipes and DeepSpeed configurations, by name or by path."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from finetune.errors import UserError
from finetune.recipe.user_path import user_path

_PACKAGE = Path(__file__).resolve().parent.parent
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class ShippedRecipe:
    """name: "text_classification/minilm-sst2"; summary: the first sentence of its comments."""

    name: str
    path: Path
    task: str
    summary: str


@cache
def shelf_folder(name: str) -> Path:
    """The folder "recipes" or "ds_configs": in the installed package, or beside it in a checkout (it may not exist)."""
    shipped = _PACKAGE / "shipped" / name
    return shipped if shipped.is_dir() else _PACKAGE.parent / name


def list_recipes() -> list[ShippedRecipe]:
    """Every recipe that ships, by name; those at the top (the quickstart) first."""
    root = shelf_folder("recipes")
    paths = [path for path in root.rglob("*") if path.suffix in _SUFFIXES and path.is_file()]
    found = [_describe(path, path.relative_to(root).with_suffix("").as_posix()) for path in paths]
    return sorted(found, key=lambda recipe: ("/" in recipe.name, recipe.name))


def find_recipe(name: str | Path) -> Path:
    """A path as given, or the file of a shipped recipe: "quickstart", "text_classification/minilm-sst2", "minilm-sst2".

    Raises: UserError naming the nearest recipes.
    """
    path = user_path(name)
    if path.exists():
        return path
    wanted = str(name).removesuffix(".yaml").removesuffix(".yml").removeprefix("./").removeprefix("recipes/")
    shipped = {recipe.name: recipe.path for recipe in list_recipes()}
    if wanted in shipped:
        return shipped[wanted]
    same_leaf = [key for key in shipped if key.rsplit("/", 1)[-1] == wanted]
    if len(same_leaf) == 1:
        return shipped[same_leaf[0]]
    near = same_leaf or _nearest_recipes(wanted, list(shipped)) or _nearest_files(path)
    hint = f"Did you mean {' or '.join(near)}?" if near else "`finetune recipes list` shows those that ship."
    raise UserError(f"no recipe {name}: neither a file nor a shipped recipe", remedy=hint)


def list_deepspeed_configs() -> list[str]:
    """Names of the JSON files in ds_configs/, such as zero2."""
    return sorted(path.stem for path in shelf_folder("ds_configs").glob("*.json"))


def find_deepspeed_config(name: str | Path) -> Path:
    """The file of a shipped DeepSpeed configuration ("zero2", "zero2.json"), or a path as given.

    Raises: UserError naming the nearest, or all of them.
    """
    path = user_path(name)
    if looks_like_file(str(name)):
        if path.is_file():
            return path
        if len(path.parts) > 1:
            raise UserError(f"no DeepSpeed configuration {name}", remedy=f"{path.absolute()} is not a file.")
    shipped = shelf_folder("ds_configs") / f"{path.name.removesuffix('.json')}.json"
    if shipped.is_file():
        return shipped
    names = list_deepspeed_configs()
    near = difflib.get_close_matches(str(name).lower(), names, n=2)
    hint = (
        f"Did you mean {' or '.join(near)}?" if near else f"There are: none, {', '.join(names)}; or the path of a JSON."
    )
    raise UserError(f"no DeepSpeed configuration {name}", remedy=hint)


def looks_like_file(text: str) -> bool:
    """Is it a file (zero2.json, conf/zero2) rather than a name (zero2)?"""
    return text.endswith(".json") or "/" in text or text.startswith((".", "~"))


def _describe(path: Path, name: str) -> ShippedRecipe:
    """Reads only comments and the task line: a list must not fail because of one broken recipe."""
    task, words = "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        comment = line.lstrip("# ").strip()
        if line.startswith("#") and not comment.startswith("yaml-language-server"):
            words.append(comment)
        if line.startswith("task:"):
            task = line.removeprefix("task:").split("#")[0].strip()
            break
    text = " ".join(words)
    return ShippedRecipe(name, path, task, re.split(r"(?<=[.?!])\s", text, maxsplit=1)[0])


def _nearest_recipes(wanted: str, names: list[str]) -> list[str]:
    leaves = {name.rsplit("/", 1)[-1]: name for name in names}
    near = difflib.get_close_matches(wanted, names, n=2)
    return near or [leaves[leaf] for leaf in difflib.get_close_matches(wanted.rsplit("/", 1)[-1], list(leaves), n=2)]


def _nearest_files(path: Path) -> list[str]:
    if not path.parent.is_dir():
        return []
    files = [item.name for item in path.parent.iterdir() if item.suffix in _SUFFIXES]
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, files, n=2)]
