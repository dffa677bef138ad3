"""Finds the format and the files of a source, by its name, its extension or the contents of its folder."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from finetune.data.columns import nearest_name
from finetune.data.formats.parallel_text import is_parallel, parallel_files
from finetune.data.formats.registry import READ_OPTIONS, advice, format_by_content, format_of
from finetune.data.sources.folder_contents import group_by_split
from finetune.data.sources.folders import distinct, locate_in_folder, locate_yolo, same_format
from finetune.data.sources.located import Located, display_path, listed
from finetune.data.split_names import split_of
from finetune.errors import UserError
from finetune.recipe.data import SourceSection
from finetune.recipe.user_path import user_path

__all__ = ["BUILTIN", "Located", "display_path", "locate"]

BUILTIN = "builtin:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def locate(source: SourceSection, name: str) -> Located:
    """The format and the files of a source for the split `name`. Reads names, what describes a folder, and the
    beginning of a .json file; no rows.

    Raises: UserError if nothing is found, the format is unknown or ambiguous, or an option of the source has no effect.
    """
    located = _locate(source, name)
    _check_options(source, located.format)
    return located


def _locate(source: SourceSection, name: str) -> Located:
    requested = source.format
    if requested == "builtin" or source.source.startswith(BUILTIN):
        return Located("builtin", ())
    if requested == "hub":
        return Located("hub", ())
    path = user_path(source.source)
    if requested == "parallel" or (requested == "auto" and is_parallel(source.source)):
        parallel_files(path)
        _no_split(path, source)
        return Located("parallel", (path,))
    if path.is_dir():
        return locate_in_folder(path, source, name)
    if path.exists():
        file_format = _format_or_raise(path, requested)
        if file_format == "yolo":
            return locate_yolo(path, source, name)
        _no_split(path, source)
        return Located(file_format, (path,))
    if glob.has_magic(source.source):
        return _locate_pattern(path, source, name)
    if requested == "auto" and HUB_ID.fullmatch(source.source) and not format_of(path) and not path.is_symlink():
        return Located("hub", ())
    raise _missing(path)


def _locate_pattern(path: Path, source: SourceSection, name: str) -> Located:
    """All files that match. Files named for another split are read as the pattern says, and reported."""
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = sorted(Path(match) for match in matches if Path(match).is_file())
    if not found:
        raise UserError("no file matches", where=display_path(path), remedy="Check the pattern and the current folder.")
    _no_split(path, source)
    files, notes = distinct(found)
    others = [
        file.name
        for label, group in group_by_split(files).items()
        for file in group
        if name and split_of(label) not in ("", name)
    ]
    notes_on_files = (
        [f"{display_path(path)}: {listed([file.name for file in files])} are read"] if len(files) > 1 else []
    )
    if others:
        notes_on_files.append(
            f"{display_path(path)}: {name} reads files that are named for another split: {listed(others)}"
        )
    if source.format == "auto":
        for file in files:
            _format_or_raise(file, source.format)
    return Located(same_format(path, files, source.format), tuple(files), (*notes_on_files, *notes))


def _no_split(path: Path, source: SourceSection) -> None:
    for option in ("split", "subset"):
        if value := getattr(source, option):
            raise UserError(
                f"`{option}: {value}` has no effect on files",
                where=display_path(path),
                remedy=f"Remove it. It is for folders and hub datasets{'' if option == 'subset' else ', and built-in ones'}.",
            )


def _check_options(source: SourceSection, file_format: str) -> None:
    """Raises: UserError for an option that is set, but has no effect on the format."""
    applicable = {**READ_OPTIONS, "revision": ("hub",)}
    for option, formats in applicable.items():
        default = SourceSection.model_fields[option].get_default(call_default_factory=True)
        if getattr(source, option) != default and file_format not in formats:
            raise UserError(
                f"`{option}:` has no effect on {file_format} data",
                where=source.source,
                remedy=f"Remove it. It is for {', '.join(formats)}.",
            )


def _format_or_raise(path: Path, requested: str) -> str:
    if requested not in ("auto", "imagefolder"):
        return requested
    if found := format_by_content(path):
        return found
    raise UserError(
        f"the format of the data cannot be inferred from the extension {path.suffix!r}",
        where=display_path(path),
        remedy=advice(path),
    )


def _missing(path: Path) -> UserError:
    parent = path.parent
    where = display_path(path)
    if path.is_symlink():
        return UserError(f"is a link to {path.readlink()}, which is not there", where=where, remedy="Fix the link.")
    if not parent.is_dir():
        return UserError("no such file, and its folder does not exist", where=where, remedy="Check the path.")
    near = nearest_name(path.name, (entry.name for entry in parent.iterdir()))
    check = "Check the path. A hub id has the form owner/name, with format: hub."
    remedy = f"Did you mean {near}?" if near else check
    return UserError("no such file", where=where, remedy=remedy)
