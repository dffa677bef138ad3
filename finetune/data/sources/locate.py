"""Finds the format and the files of a source, by its name, its extension or the contents of its folder."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from finetune.data.columns import nearest_name
from finetune.data.formats import coco
from finetune.data.formats.parallel_text import is_parallel, parallel_files
from finetune.data.formats.registry import EXTENSIONS, format_of
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

BUILTIN = "builtin:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Files that `Dataset.save_to_disk` of `datasets` writes beside the rows.
METADATA_FILES = ("dataset_info.json", "state.json", "dataset_dict.json")


@dataclass(frozen=True)
class Located:
    """The format and the files of a source. files: the folder of an imagefolder; empty for hub and builtin."""

    format: str
    files: tuple[Path, ...]


def display_path(path: Path | str) -> str:
    """The path for messages: relative to the current folder if it is inside, else absolute."""
    full = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links and change the name
    return full.removeprefix(str(Path.cwd()) + os.sep)


def locate(source: SourceSection) -> Located:
    """The format and the files of a source. Reads names only, no contents.

    Raises: UserError if nothing is found, or the format is unknown or ambiguous.
    """
    name, requested = source.source, source.format
    if requested == "builtin" or name.startswith(BUILTIN):
        return Located("builtin", ())
    if requested == "hub":
        return Located("hub", ())
    path = Path(name).expanduser()
    if requested == "parallel" or (requested == "auto" and is_parallel(name)):
        parallel_files(path)
        return Located("parallel", (path,))
    if path.is_dir():
        return _locate_in_folder(path, source)
    if path.exists():
        return Located(_format_or_raise(path, requested), (path,))
    if glob.has_magic(name):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        files = sorted(Path(match) for match in matches if Path(match).is_file())
        if not files:
            raise UserError(
                "no file matches", where=display_path(path), remedy="Check the pattern and the current folder."
            )
        return _same_format(path, files, requested)
    if requested == "auto" and HUB_ID.fullmatch(name) and not format_of(path):
        return Located("hub", ())
    raise _missing(path)


def _locate_in_folder(path: Path, source: SourceSection) -> Located:
    requested = source.format
    if source.split and (path / source.split).is_dir():
        path = path / source.split
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if requested in ("auto", "coco") and (annotations := coco.find_annotations(path)) is not None:
        return Located("coco", (annotations,))
    if requested == "coco" and len(jsons := [file for file in files if format_of(file) == "json"]) == 1:
        return Located("coco", (jsons[0],))
    if requested != "imagefolder":
        rows = [file for file in files if format_of(file) and file.name not in METADATA_FILES]
        if requested != "auto":
            rows = [file for file in rows if format_of(file) == requested]
        if rows:
            return _same_format(path, rows, requested)
        if requested != "auto":
            raise UserError(
                f"contains no {requested} file",
                where=display_path(path),
                remedy="Give the file itself, or another folder.",
            )
    return Located("imagefolder", (path,))


def _same_format(path: Path, files: list[Path], requested: str) -> Located:
    formats = {_format_or_raise(file, requested) for file in files}
    if len(formats) > 1:
        raise UserError(
            f"contains files of several formats: {', '.join(sorted(formats))}",
            where=display_path(path),
            remedy="Choose one with `format:`, or list each as a separate source.",
        )
    return Located(formats.pop(), tuple(files))


def _format_or_raise(path: Path, requested: str) -> str:
    if requested not in ("auto", "imagefolder"):
        return requested
    if by_extension := format_of(path):
        return by_extension
    raise UserError(
        f"the format of the data cannot be inferred from the extension {path.suffix!r}",
        where=display_path(path),
        remedy=f"Set `format:` to one of {', '.join(dict.fromkeys(EXTENSIONS.values()))}, coco.",
    )


def _missing(path: Path) -> UserError:
    parent = path.parent
    where = display_path(path)
    if not parent.is_dir():
        return UserError("no such file, and its folder does not exist", where=where, remedy="Check the path.")
    near = nearest_name(path.name, (entry.name for entry in parent.iterdir()))
    check = "Check the path. A hub id has the form owner/name, with format: hub."
    remedy = f"Did you mean {near}?" if near else check
    return UserError("no such file", where=where, remedy=remedy)
