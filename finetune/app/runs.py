"""Which run folder a training writes to: a new one, or that of the run that it resumes."""

from __future__ import annotations

import os
from pathlib import Path

from finetune.errors import UserError
from finetune.recipe.identity import list_differences
from finetune.recipe.load import LoadedRecipe
from finetune.terminal import print_line
from finetune.tracking.run import Run

ROOT = Path("runs")


def choose_run(loaded: LoadedRecipe, run_dir: Path | None, resume: str) -> Run | None:
    """The run to resume, or a new one; None if `run_dir` holds this recipe's run, done already.

    Raises: UserError as find_run does.
    """
    run = find_run(loaded, run_dir, resume)
    if run is None:
        return Run.create(loaded.recipe, ROOT, path=run_dir)
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
    run = Run.open(run_dir)
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
        raise UserError(
            f"the run is being trained by process {run.trainer}",
            where=str(run_dir),
            remedy="Wait for its end or stop it (kill -TERM saves first), then start the same command again.",
        )
    return run
