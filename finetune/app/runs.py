"""Which run folder a training writes to: a new one, or that of the run that it resumes."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path

from finetune.app.edited_recipe import refuse_edited_recipe
from finetune.data.prepare.locks import holder, release, try_lock
from finetune.errors import UserError
from finetune.recipe.identity import list_differences
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.recipe import Recipe
from finetune.recipe.trust import OPTION, is_trusted
from finetune.terminal import print_line
from finetune.tracking.atomic_files import check_folder
from finetune.tracking.retention import removal_remedy
from finetune.tracking.run import Run, recipe_text
from finetune.tracking.shared_rows import shared_lines
from finetune.training.checkpoint_manifest import MANIFEST, Manifest
from finetune.units import format_figure

ROOT = Path("runs")
LOCK = ".lock"  # in a run folder, held by the process that trains in it

_held: dict[Path, int] = {}  # run folder -> file descriptor of its lock


def kept_run(recipe: Recipe, run_dir: Path | None, resume: str) -> Path | None:
    """The folder of the run whose plan, artifacts and data a training keeps; None where it begins anew. Reads only.

    That of the checkpoint which `resume` names, else of the run that is resumed, if it has a checkpoint.
    Raises: UserError if `resume` names no checkpoint, or one of another recipe.
    """
    if resume not in ("auto", "never"):
        checkpoint = Path(resume).resolve()
        if not (checkpoint / MANIFEST).is_file():
            raise _no_checkpoint(checkpoint)
        owner = Run(checkpoint.parent.parent)
        _refuse_other_recipe(owner, checkpoint, recipe)
        return owner.path if owner.plan_file.is_file() else None
    if resume == "never":
        return None
    run = Run(run_dir) if run_dir is not None else Run.newest_unfinished(recipe, ROOT)
    return run.path if run is not None and has_checkpoint(run) else None


def _refuse_other_recipe(owner: Run, checkpoint: Path, recipe: Recipe) -> None:
    """Raises: UserError if the run that has the checkpoint, or the checkpoint itself, trained something else."""
    if owner.recipe_file.is_file() and (differences := owner.differences(recipe)):
        raise UserError(
            f"the checkpoint belongs to another recipe:{list_differences(differences)}",
            where=str(checkpoint),
            remedy=" ".join(filter(None, ("Resume with the recipe of its run.", _start_from(owner, recipe)))),
        )
    with suppress(
        OSError, ValueError, KeyError, TypeError
    ):  # the ranks look at a damaged one, and name what is damaged
        refuse_edited_recipe(checkpoint, Manifest.read(checkpoint / MANIFEST), recipe)


def _start_from(run: Run, recipe: Recipe) -> str:
    """What to set for a changed recipe: a new training that starts from the weights of a run; "" if it has no model yet."""
    if not run.model.is_dir():
        return ""
    pretrained = " --set model.init=pretrained" if recipe.model.init == "config" else ""
    return f"To start from the weights of this run: --set model.source={run.path}{pretrained}"


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

    Raises: UserError if the folder belongs to another recipe, another process trains it, or it holds files of others.
    """
    recipe = loaded.recipe
    if run_dir is None:
        return Run.newest_unfinished(recipe, ROOT) if resume == "auto" else None
    if not (run_dir / "run.json").is_file():
        refuse_foreign_files(run_dir, recipe)
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
            remedy=_beside(run, recipe),
        )
    if run.trainer not in (None, os.getpid()):
        raise _taken(f"process {run.trainer}", run_dir)
    return run


def _beside(run: Run, recipe: Recipe) -> str:
    """What to do where a folder holds a run of another recipe: by what the run has."""
    if weights := _start_from(run, recipe):
        return f"Give another --run-dir. {weights}"
    if has_checkpoint(run):
        return "Give another --run-dir, or set these keys back to resume the run from its checkpoint."
    if run.status == "running":
        return "Give another --run-dir: a process may be training in this one."
    return "Give another --run-dir, or remove this folder: the run in it ended before its first checkpoint."


def refuse_foreign_files(folder: Path, recipe: Recipe) -> None:
    """Raises: UserError if a folder without run.json is none, or holds what a new run there would overwrite or remove.

    A start that was killed before it wrote run.json leaves empty folders and the same recipe.yaml: these are let through.
    Logs are too: a launcher may write its own there.
    """
    check_folder(folder, "Give another --run-dir.")
    new = Run(folder)
    folders = (new.checkpoints, new.predictions, new.tables, new.model, new.artifacts, new.evaluations)
    found = [f"{path.name}/" for path in folders if path.is_dir() and any(path.iterdir())]
    files = (new.plan_file, new.metrics_file, new.report_file, *(path for path in folders if not path.is_dir()))
    found += [path.name for path in files if path.exists()]
    if new.recipe_file.exists() and not _has_text(new.recipe_file, recipe_text(recipe)):
        found.append(new.recipe_file.name)
    if found:
        raise UserError(
            f"the folder is not a run, and a run there would replace what it holds: {', '.join(sorted(found))}",
            where=f"--run-dir {folder}",
            remedy="Give a new folder; nothing was overwritten.",
        )


def _has_text(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


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


def result_lines(run: Run) -> list[str]:
    """What came of a training that is done: the best value, and where model and report are."""
    summary = run.read().get("summary", {})
    lines = []
    if summary.get("best_value") is not None:
        value = format_figure(float(summary["best_value"]))
        lines.append(f"best    {summary['best_metric']} {value} at step {summary['best_step']}")
    elif "last_loss" in summary:
        undefined = f"{summary['best_metric']} is undefined in every evaluation"
        lines.append(f"best    none: {undefined}; the model is that of the last step")
    lines += shared_lines(run.read().get("facts", {})) if summary else []
    lines.append(f"model   {run.model}")
    return lines + ([f"report  {run.report_file}"] if run.report_file.is_file() else [])


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
