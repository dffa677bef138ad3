"""Which run folder a training writes to: a new one, or that of the run that it resumes."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from finetune.data.prepare.locks import holder, release, try_lock
from finetune.errors import UserError
from finetune.recipe.identity import list_differences
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.recipe import Recipe
from finetune.recipe.trust import OPTION, is_trusted
from finetune.terminal import print_line
from finetune.tracking.retention import removal_remedy
from finetune.tracking.run import Run

ROOT = Path("runs")
LOCK = ".lock"  # in a run folder, held by the process that trains in it
MANIFEST = "manifest.json"  # of a checkpoint, written last

_held: dict[Path, int] = {}  # run folder -> file descriptor of its lock


def kept_run(recipe: Recipe, run_dir: Path | None, resume: str) -> Path | None:
    """The folder of the run whose plan, artifacts and data a training keeps; None where it begins anew. Reads only.

    That of the checkpoint which `resume` names, else of the run that is resumed, if it has a checkpoint.
    Raises: UserError if `resume` names no checkpoint.
    """
    if resume not in ("auto", "never"):
        checkpoint = Path(resume).resolve()
        if not (checkpoint / MANIFEST).is_file():
            raise _no_checkpoint(checkpoint)
        owner = Run(checkpoint.parent.parent)
        return owner.path if owner.plan_file.is_file() else None
    if resume == "never":
        return None
    run = Run(run_dir) if run_dir is not None else Run.newest_unfinished(recipe, ROOT)
    return run.path if run is not None and has_checkpoint(run) else None


def has_checkpoint(run: Run) -> bool:
    """Whether something of the run's training is kept: a complete checkpoint, whose digests nobody has looked at."""
    return any(path.suffix == "" and (path / MANIFEST).is_file() for path in run.checkpoints.glob("step-*"))


def _no_checkpoint(path: Path) -> UserError:
    owner = Run(path.parent.parent)
    what = "no such checkpoint" if not path.exists() else f"not a checkpoint: it has no {MANIFEST}"
    removed = removal_remedy(owner) if owner.file.is_file() and not path.exists() else ""
    names = sorted(found.name for found in path.glob("checkpoints/step-*")) if (path / "run.json").is_file() else []
    if names:
        removed = (
            f"It is a run folder; its checkpoints are {', '.join(names)}: --resume {path / 'checkpoints' / names[-1]}."
        )
    return UserError(
        what,
        where=f"--resume {path}",
        remedy=removed or "Give the folder of a checkpoint, .../checkpoints/step-*, or auto.",
    )


def choose_run(loaded: LoadedRecipe, run_dir: Path | None, resume: str) -> Run | None:
    """The run to resume, or a new one; None if `run_dir` holds this recipe's run, done already.

    The folder is this process's own from then on, until `leave_folders`.
    Raises: UserError as find_run does, and if another process has the folder.
    """
    run = find_run(loaded, run_dir, resume)
    if (folder := run_dir if run is None else run.path) is not None:
        take_folder(folder)
        run = find_run(loaded, run_dir, resume)  # another process may have had it until now
    if run is None:
        run = Run.create(loaded.recipe, ROOT, path=run_dir)
        take_folder(run.path)
        return run
    if run.status == "done":
        print_line(f"nothing to do: {run.path} is done; its model is in {run.model}")
        return None
    run.write_recipe(loaded.recipe)
    return run


def find_run(loaded: LoadedRecipe, run_dir: Path | None, resume: str) -> Run | None:
    """The run that `choose_run` would resume or find done; None where it would make a new one. Writes nothing.

    Raises: UserError if the folder belongs to another recipe, or another process trains it.
    """
    recipe = loaded.recipe
    if run_dir is None:
        return Run.newest_unfinished(recipe, ROOT) if resume == "auto" else None
    if not (run_dir / "run.json").is_file():
        return None
    run = Run.open(run_dir, own=True)
    if resume == "never":
        raise UserError(
            "--resume never would start a new run in the folder of another one",
            where=str(run_dir),
            remedy="Give another --run-dir, or remove this folder.",
        )
    if differences := run.differences(recipe):
        raise UserError(
            f"the folder holds a run of another recipe:{list_differences(differences)}",
            where=str(run_dir),
            remedy="Give another --run-dir to train this one.",
        )
    if run.trainer not in (None, os.getpid()):
        raise _taken(f"process {run.trainer}", run_dir)
    return run


def resume_command(run: Run, *, processes: int | None = None, data_changed: bool = False, restarts: int = 0) -> str:
    """What to type to resume exactly this run, from the folder that this process was started in.

    The stored recipe has the values of --set; the number of processes is that of the recipe or machine unless it is given.
    """
    words = ["finetune", "train", str(run.recipe_file), "--run-dir", str(run.path)]
    words += ["--processes", str(processes)] if processes is not None else []
    words += ["--restarts", str(restarts)] if restarts else []
    words += ["--data-changed"] if data_changed else []
    words += [OPTION] if is_trusted() else []
    return shlex.join(words)


def take_folder(folder: Path, what: str = "run") -> None:
    """Keep other processes from training in a run folder (what: or from running a sweep), until this one ends or calls
    `leave_folders`.

    Where the file system has no locks, run.json alone tells who trains the run.
    Raises: UserError if another process has it.
    """
    folder = folder.resolve()
    if folder in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = try_lock(folder / LOCK)
    except OSError:  # no locks, or read-only, which is reported when something is written
        return
    if file is None:
        raise _taken(holder(folder / LOCK), folder, what)
    _held[folder] = file


def is_taken(folder: Path) -> bool:
    """Whether a living process trains in a run folder."""
    try:
        file = try_lock(folder / LOCK) if folder.is_dir() else -1
    except OSError:
        file = -1
    if file is None:
        return True
    if file >= 0:
        release(file, folder / LOCK)
    return (folder / "run.json").is_file() and Run(folder).trainer is not None


def leave_folders() -> None:
    """The training is over: others may have its folder."""
    while _held:
        folder, file = _held.popitem()
        release(file, folder / LOCK)


def _taken(by: str, folder: Path, what: str = "run") -> UserError:
    return UserError(
        f"the {what} is being trained by {by}",
        where=str(folder),
        remedy="Wait for its end or stop it (kill -TERM saves first), then start the same command again.",
    )
