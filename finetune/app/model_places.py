"""Whether there is anything where a command says that its model and its data are, before what reads them is imported."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from finetune.data.sources.locate import locate
from finetune.data.sources.read_options import asked_sources
from finetune.errors import UserError
from finetune.models.source import PACKAGE_SCHEME, RUN_FILE, check_described, looks_like_path, resolve_model
from finetune.recipe.user_path import user_path
from finetune.tracking.run import Run, nearest_folder, newest_run_in
from finetune.training.checkpoint_manifest import MANIFEST

PIPE = "-"  # the name of standard input
POSSIBLE = "Give the folder of a run, a folder that `finetune export` wrote, or a hub id (owner/name)."


def check_places(model: str, data: Sequence[str] = (), read: Sequence[str] = ()) -> None:
    """Raises: UserError where nothing is, or a folder of something else, in the words of what would read it seconds later.

    read: options of the data, KEY=VALUE.
    """
    path = user_path(model)
    if (path / RUN_FILE).is_file():
        Run.open(path)
    else:
        refuse_other_folders(model, path)
        if (folder := Path(resolve_model(model))).is_dir():
            check_described(folder, shown=model)
    for source in asked_sources(data, read):
        pattern = str(user_path(source.source))
        if source.source != PIPE and not Path(pattern).exists() and not _matches(pattern):
            locate(source, "")


def check_export(run: Path, output: Path) -> None:
    """Raises: UserError for what is not the folder of a run, and for an output that is a file or lies in one."""
    found = next((path for path in (output, *output.parents) if path.exists()), output)
    if not found.is_dir():
        raise UserError("is not a folder", where=str(found), remedy="Give a new folder as --output.")
    Run.open(run)


def _matches(pattern: str) -> bool:
    return next(glob.iglob(pattern, recursive=True), None) is not None  # noqa: PTH207 - Path.glob takes no absolute pattern


def refuse_other_folders(source: str, path: Path) -> None:
    """Raises: UserError for a file, for a folder of runs, for a checkpoint, and for a path where nothing is."""
    if path.is_file():
        raise UserError("is a file, not the folder of a model", where=source, remedy=POSSIBLE)
    if (path / MANIFEST).is_file() and (run := path.resolve().parent.parent).joinpath(RUN_FILE).is_file():
        raise UserError(
            "this is a checkpoint, not the folder of a run",
            where=source,
            remedy=f"Give the run, and the checkpoint by its name: {run} --checkpoint {path.resolve().name}",
        )
    if newest_run_in(path) is not None and not (path / "config.json").is_file():
        Run.open(path)  # raises, with the newest of its runs
    if path.exists() or source.startswith(PACKAGE_SCHEME):
        return
    beside_runs = (
        path.parent != Path() and newest_run_in(path.parent) is not None
    )  # "runs/x" could be a hub id elsewhere
    if looks_like_path(source) or beside_runs:
        near = nearest_folder(path)
        raise UserError(
            "no such folder",
            where=source,
            remedy=f"Did you mean {near}?" if near else POSSIBLE,
        )
