"""What lies in a folder: the data files that are read, by the splits that their names say, and the rest."""

from __future__ import annotations

import json
import mimetypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from finetune.data.columns import nearest_name
from finetune.data.formats.compression import unreadable
from finetune.data.formats.registry import format_of
from finetune.data.sources.located import display_path
from finetune.data.split_names import split_word
from finetune.errors import UserError

Groups = dict[str, list[Path]]  # a split as its files name it, "" where they name none -> files, or one folder

STATE = "state.json"  # of Dataset.save_to_disk: names its files
SPLIT_LIST = "dataset_dict.json"  # of DatasetDict.save_to_disk: names its splits
METADATA = (STATE, SPLIT_LIST, "dataset_info.json", "dataset_infos.json")
DOCUMENT = re.compile(
    r"(readme|licen[cs]e|notice|changelog|citation|requirements|authors|contributing)\b.*", re.IGNORECASE
)
SCANNED = 1_000  # entries of a subfolder that are looked at to see what it holds
FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)


@dataclass(frozen=True)
class FolderContents:
    """files: those that are read, in order of their names. unread: other files, without hidden ones. folders: visible ones."""

    files: list[Path]
    unread: list[Path]
    num_hidden: int
    folders: list[Path]

    @property
    def groups(self) -> Groups:
        """The files by the words for splits in their names."""
        return group_by_split(self.files)


def group_by_split(paths: list[Path]) -> Groups:
    """Files or folders by the words for splits in their names."""
    groups: Groups = {}
    for path in paths:
        groups.setdefault(split_word(path.name), []).append(path)
    return groups


def read_folder(folder: Path, requested: str) -> FolderContents:
    """The contents of a folder. requested: the format to read, or auto.

    Text files are data only where there is no other data and no image: beside them, they are notes.
    Raises: UserError if the folder cannot be read, or lacks a file that it says it has.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        hidden = [entry for entry in entries if entry.name.startswith(".")]
        folders = [Path(entry) for entry in entries if entry.is_dir() and entry not in hidden and entry.name[0] != "_"]
        others = [Path(entry) for entry in entries if entry.is_file() and entry not in hidden]
    except OSError as error:
        raise unreadable(folder, error) from error
    files = (
        _saved_files(folder) if (folder / STATE).is_file() else [path for path in others if _is_data(path, requested)]
    )
    if requested == "auto" and any(format_of(path) != "text" for path in files):
        files = [path for path in files if format_of(path) != "text"]
    elif requested == "auto" and files and _holds_images([*others, *folders]):
        files = []
    chosen = set(files)
    return FolderContents(files, [path for path in others if path not in chosen], len(hidden), folders)


def _is_data(path: Path, requested: str) -> bool:
    if path.name in METADATA or DOCUMENT.fullmatch(path.name):
        return False
    by_name = format_of(path)
    return bool(by_name) if requested == "auto" else by_name == requested


def _holds_images(paths: list[Path]) -> bool:
    for path in paths:
        names = [entry.name for entry in islice(os.scandir(path), SCANNED)] if path.is_dir() else [path.name]
        if any(str(mimetypes.guess_type(name)[0]).startswith("image/") for name in names):
            return True
    return False


def holds_data(folder: Path) -> bool:
    """Whether a folder holds data files, other than text."""
    with os.scandir(folder) as entries:
        paths = (Path(entry) for entry in islice(entries, SCANNED) if not entry.name.startswith("."))
        return any(_is_data(path, "auto") and format_of(path) != "text" for path in paths)


def _saved_files(folder: Path) -> list[Path]:
    """The files of a data set that `Dataset.save_to_disk` wrote, in order; others may be caches of what was done to it."""
    state = _read_json(folder / STATE)
    files = [folder / str(entry["filename"]) for entry in state.get("_data_files") or ()]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise UserError(
            "no such file", where=display_path(missing), remedy=f"{STATE} beside it names it: copy it, too."
        )
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return content if isinstance(content, dict) else {}


def declared_groups(folder: Path, subset: str) -> tuple[Groups, str] | None:
    """(split -> files or folder, the file that says so): of save_to_disk or of `configs:` in README.md; None if neither does.

    subset: the configuration, as the recipe names it; "": the only one, or the default.
    Raises: UserError for configurations of which none can be chosen.
    """
    if (folder / SPLIT_LIST).is_file():
        splits = _read_json(folder / SPLIT_LIST).get("splits") or ()
        return {str(split): [folder / str(split)] for split in splits}, SPLIT_LIST
    readme = folder / "README.md"
    configs = _configs(readme) if readme.is_file() else {}
    if not configs or (subset and (folder / subset).is_dir() and subset not in configs):
        return None
    name = subset or next((name for name, config in configs.items() if config.get("default")), "")
    name = name or ("default" if "default" in configs else next(iter(configs)) if len(configs) == 1 else "")
    if name not in configs:
        near = nearest_name(subset, configs) if subset else ""
        what = (
            f"has no subset {subset!r}" + (f"; did you mean {near}?" if near else "")
            if subset
            else "has several subsets"
        )
        raise UserError(what, where=display_path(folder), remedy=f"Set `subset:` to one of {', '.join(configs)}.")
    groups = {split: _matches(folder, patterns) for split, patterns in _patterns(configs[name]).items()}
    return (groups, readme.name) if groups else None


def _configs(readme: Path) -> dict[str, Mapping[str, Any]]:
    """The entries of `configs:` in the front matter of a data set's card that name files; {} if there are none."""
    try:
        match = FRONT_MATTER.match(readme.read_text("utf-8-sig"))
        content = yaml.safe_load(match[1]) if match else None
    except (OSError, ValueError, yaml.YAMLError):  # a text for people, too
        return {}
    configs = content.get("configs") if isinstance(content, dict) else None
    return {
        str(config.get("config_name", "default")): config
        for config in (configs if isinstance(configs, list) else ())
        if isinstance(config, dict) and config.get("data_files")
    }


def _patterns(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """{split: glob patterns} of a configuration."""
    files = config["data_files"]
    patterns: dict[str, list[str]] = {}
    base = str(config.get("data_dir") or "").strip("/")
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    for entry in files if isinstance(files, list) else [files]:
        split, path = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        named = [str(item) for item in (path if isinstance(path, list) else [path]) if item]
        patterns.setdefault(str(split), []).extend(f"{base}/{item}" if base else item for item in named)
    return patterns


def _matches(folder: Path, patterns: list[str]) -> list[Path]:
    files: dict[Path, None] = {}
    for pattern in patterns:
        if "://" not in pattern and not pattern.startswith("/"):
            files.update(dict.fromkeys(sorted(path for path in folder.glob(pattern) if path.is_file())))
    return list(files)
