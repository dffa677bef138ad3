"""Which values of a recipe are paths, and what they are relative to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune.errors import Fault
from finetune.recipe.document import KeyPath
from finetune.recipe.draft import SPLITS, Draft
from finetune.recipe.shelf import list_deepspeed_configs
from finetune.recipe.user_path import unusable, user_path
from finetune.recipe.yaml_values import show_text

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".xlsx", ".conll", ".parquet", ".arrow", ".txt")
PATH_OPTIONS = ("tools",)  # options of tasks that name a file; preparation notices that it changes
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")
_BRACES = re.compile(r"\{[^{}/]+,[^{}/]+\}")  # train.{de,en}: several files, looked for when they are opened
_BARE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_CONFIG_ENTRY = re.compile(r"""\(\s*["']([\w-]+)["'],\s*["']\w+Config["']""")
_EXPLICIT = ("./", "../", "/", "~")


def absolute_paths(draft: Draft, recipe_folder: Path) -> None:
    """Make every local path of the draft absolute: relative to the recipe's folder, from --set to the current one.

    Hub ids, names and values with a scheme (package:, builtin:, train:, hf:, s3:) stay as they are.
    """
    for path in path_keys(draft):
        value = draft.get(path)
        if problem := unusable(value) if isinstance(value, str) else "":
            draft.faults.append(Fault(draft.place(path), draft.shown(path), problem, show_text(value)))
            _replace(draft, path, "unusable")
            continue
        base = Path.cwd() if draft.place(path).startswith("--set") else recipe_folder
        if path == ("parallel", "deepspeed") and value in ("none", *list_deepspeed_configs()):
            continue  # the name, although a folder is called like it; ./name means the file
        if path == ("parallel", "deepspeed") and _is_shipped(value, base):
            _replace(draft, path, Path(value).stem)
        elif isinstance(value, str) and is_local(value, base):
            if path == ("model", "source") and draft.get(("model", "init")) == "config" and is_model_type(value):
                continue  # the architecture, although a folder has its name; ./name means the folder
            local = base / user_path(value)
            # The name of a data file says how it is read, so links to it are not followed.
            _replace(draft, path, os.path.abspath(local) if path[0] == "data" else str(local.resolve()))  # noqa: PTH100


def path_keys(draft: Draft) -> Iterator[KeyPath]:
    """Keys of the draft whose value may be a path."""
    yield from (("model", key) for key in ("source", "tokenizer", "processor"))
    yield ("parallel", "deepspeed")
    yield from (("options", name) for name in PATH_OPTIONS)
    for split in SPLITS:
        sources: Any = draft.get(("data", split))
        for index in range(len(sources) if isinstance(sources, list) else 0):
            yield ("data", split, index, "source")
            if isinstance(sources[index], dict) and sources[index].get("images"):
                yield ("data", split, index, "images")


def is_local(value: str, base: Path) -> bool:
    """Is this a file or folder, rather than a hub id, a name, or something with a scheme?"""
    if not value or _SCHEME.match(value):
        return False
    if value.startswith(_EXPLICIT) or value in (".", "..") or _BRACES.search(value):
        return True
    if value.removesuffix(next((end for end in COMPRESSED if value.endswith(end)), "")).endswith(DATA_SUFFIXES):
        return True
    return (base / value).exists()


def is_model_type(value: Any) -> bool:
    """Is this the name of an architecture that transformers knows, such as llama? Without importing transformers."""
    if not isinstance(value, str) or not _BARE.fullmatch(value):
        return False
    return value in _model_types()


@cache
def _model_types() -> frozenset[str]:
    spec = find_spec("transformers")  # of a top-level package: found, not imported
    found: set[str] = set()
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for name in ("auto_mappings.py", "configuration_auto.py"):
            file = Path(root, "models/auto", name)
            if file.is_file():
                found.update(_CONFIG_ENTRY.findall(file.read_text(encoding="utf-8")))
    return frozenset(found)


def is_present(value: str) -> bool:
    """Does an absolute path, or a pattern of them, name something? True for what is no absolute path."""
    if not value.startswith("/") or _BRACES.search(value):
        return True
    if Path(value).exists():
        return True
    return is_pattern(value) and next(Path("/").glob(value.lstrip("/")), None) is not None


def is_pattern(value: str) -> bool:
    """Does the name hold glob characters?"""
    return any(character in value for character in "*?[")


def _is_shipped(value: Any, base: Path) -> bool:
    """Does "zero2.json" or "ds_configs/zero2.json" mean the configuration that ships, there being no such file?"""
    if not isinstance(value, str) or not value.endswith(".json") or (base / value).exists():
        return False
    path = Path(value)
    return path.stem in list_deepspeed_configs() and path.parent.as_posix() in (".", "ds_configs")


def _replace(draft: Draft, path: KeyPath, value: str) -> None:
    """Write without touching where the value came from."""
    draft.get(path[:-1])[path[-1]] = value
