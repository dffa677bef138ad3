"""The forms of data, and where a source lies: its form and files. A new text form is a reader and a line here."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune.data.columns import nearest_name
from finetune.data.formats import coco
from finetune.data.formats.conll import read_conll
from finetune.data.formats.json_file import read_json
from finetune.data.formats.lines import Reader, read_csv, read_jsonl, read_tsv
from finetune.data.formats.parallel_text import is_parallel, parallel_files, read_parallel
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

# Text, read row by row with line numbers.
READERS: Mapping[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "conll": read_conll,
    "parallel": read_parallel,
    "coco": coco.read_coco,
}

ENDINGS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
BUILTIN = "builtin:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# What Dataset.save_to_disk and its like leave beside the rows.
NOT_ROWS = ("dataset_info.json", "state.json", "dataset_dict.json")


@dataclass(frozen=True)
class Located:
    """A source found: its form, and its files (the one folder of an imagefolder; none for hub and builtin)."""

    format: str
    files: tuple[Path, ...]


def shown(path: Path | str) -> str:
    """A path as people read it: relative to the current folder if it lies inside, else in full."""
    full = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links, and show another name than was given
    here = str(Path.cwd()) + os.sep
    return full.removeprefix(here)


def form_of(path: Path) -> str:
    """The form by a file's ending (.gz looked through), or ""."""
    name = path.with_suffix("") if path.suffix == ".gz" else path
    if name.name.lower().endswith(coco.ENDING):
        return "coco"
    return ENDINGS.get(name.suffix.lower(), "")


def locate(source: SourceSection) -> Located:
    """Where a source lies and what form it has; looks at names only.

    Raises: UserError if nothing is there, or its form cannot be told.
    """
    name, form = source.source, source.format
    if form == "builtin" or name.startswith(BUILTIN):
        return Located("builtin", ())
    if form == "hub":
        return Located("hub", ())
    path = Path(name).expanduser()
    if form == "parallel" or (form == "auto" and is_parallel(name)):
        parallel_files(path)
        return Located("parallel", (path,))
    if path.is_dir():
        return _locate_folder(path, source)
    if path.exists():
        return Located(_form_or_raise(path, form), (path,))
    if glob.has_magic(name):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = sorted(Path(match) for match in matches if Path(match).is_file())
        if not found:
            raise UserError("no file matches", where=shown(path), remedy="Check the pattern and the current folder.")
        return _same_form(path, found, form)
    if form == "auto" and HUB_ID.fullmatch(name) and not form_of(path):
        return Located("hub", ())
    raise _missing(path)


def _locate_folder(path: Path, source: SourceSection) -> Located:
    form = source.format
    if source.split and (path / source.split).is_dir():
        path = path / source.split
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if form in ("auto", "coco") and (annotations := coco.find_annotations(path)) is not None:
        return Located("coco", (annotations,))
    if form == "coco" and len(jsons := [file for file in files if form_of(file) == "json"]) == 1:
        return Located("coco", (jsons[0],))
    if form != "imagefolder":
        rows = [file for file in files if form_of(file) and file.name not in NOT_ROWS]
        if form != "auto":
            rows = [file for file in rows if form_of(file) == form]
        if rows:
            return _same_form(path, rows, form)
        if form != "auto":
            raise UserError(f"holds no {form} file", where=shown(path), remedy="Name the file, or another folder.")
    return Located("imagefolder", (path,))


def _same_form(path: Path, files: list[Path], form: str) -> Located:
    forms = {_form_or_raise(file, form) for file in files}
    if len(forms) > 1:
        raise UserError(
            f"holds files of several forms: {', '.join(sorted(forms))}",
            where=shown(path),
            remedy="Say which one with `format:`, or give each as a source of its own.",
        )
    return Located(forms.pop(), tuple(files))


def _form_or_raise(path: Path, form: str) -> str:
    if form not in ("auto", "imagefolder"):
        return form
    if found := form_of(path):
        return found
    raise UserError(
        f"the form of the data cannot be told from the ending {path.suffix!r}",
        where=shown(path),
        remedy=f"Say it with `format:`, one of {', '.join(dict.fromkeys(ENDINGS.values()))}, coco.",
    )


def _missing(path: Path) -> UserError:
    parent = path.parent
    if not parent.is_dir():
        return UserError("no such file, nor its folder", where=shown(path), remedy="Check the path.")
    near = nearest_name(path.name, (entry.name for entry in parent.iterdir()))
    remedy = f"Did you mean {near}?" if near else "Check the path; a hub id has the form owner/name, with format: hub."
    return UserError("no such file", where=shown(path), remedy=remedy)
