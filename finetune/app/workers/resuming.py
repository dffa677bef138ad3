"""Where a training resumes: the stored plan, the checkpoint to start from, and the best one so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.app.runs import ROOT
from finetune.app.workers.preparing import PreparedData
from finetune.distributed.session import Session
from finetune.errors import UserError
from finetune.events import Listener
from finetune.planning.plan import Plan
from finetune.planning.stored import StoredPlan
from finetune.recipe.identity import list_differences, training_differences
from finetune.recipe.recipe import Recipe
from finetune.tracking.retention import removal_remedy
from finetune.tracking.run import Run
from finetune.training.checkpoint_reader import Checkpoint, check_together, checkpoint_name, newest_checkpoint
from finetune.training.checkpoint_writer import abandon_newer, name_checkpoint
from finetune.units import format_number


def find_stored_plan(recipe: Recipe, run_dir: Path | None, resume: str) -> StoredPlan | None:
    """The plan of the run that is resumed: of the checkpoint that is named, else of the run folder. Reads only."""
    if resume == "never":
        return None
    named = None if resume == "auto" else StoredPlan.read(Run(Path(resume).resolve().parent.parent).plan_file)
    if named is not None:
        return named
    run = Run(run_dir) if run_dir is not None else Run.newest_unfinished(recipe, ROOT)
    return None if run is None else StoredPlan.read(run.plan_file)


def find_resumed_run(recipe: Recipe, run_dir: Path | None, resume: str) -> Path | None:
    """The folder of the run that will be resumed, if there is one: `choose_run` comes to the same. Reads only."""
    if run_dir is not None:
        return run_dir
    run = Run.newest_unfinished(recipe, ROOT) if resume == "auto" else None
    return None if run is None else run.path


def report_data_changes(run: Run, start: Checkpoint | None, data: PreparedData, listener: Listener) -> None:
    """Keep in run.json which rows are trained on, and say where they are not those before `start`. Rank 0 only."""
    now: dict[str, dict[str, Any]] = {
        name: {"rows": data.rows.get(name, 0), "digest": digest} for name, digest in data.digests.items()
    }
    if start is not None:
        owner = Run(start.path.parent.parent)
        before = owner.read().get("data") or {} if owner.file.is_file() else {}
        for name in sorted({*before, *now} if before else ()):
            then, current = before.get(name), now.get(name)
            if then == current:
                continue
            rows = [format_number(each["rows"], "row") if each else "none" for each in (then, current)]
            listener.message(
                f"THE DATA HAS CHANGED since {start.path.name}: {name} had {rows[0]}, and now has {rows[1]} with other "
                "content; figures before and after are of different data. --resume never trains anew"
            )
    run.update(data=now)


def check_same_plan(session: Session, plan: Plan) -> None:
    """All ranks call it. Raises: UserError if they do not see the same run folder."""
    plans = session.all_gather(plan.training)
    if any(other != plans[0] for other in plans):
        raise UserError(
            "the ranks found different plans for the same run",
            remedy="All machines need the same run folder: put runs/ on storage that they share.",
        )


def find_checkpoints(
    session: Session, run: Run, recipe: Recipe, resume: str, listener: Listener
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Where to resume, and the best checkpoint so far; digests checked, each rank its share. All ranks call it."""
    folder = run.checkpoints
    if resume == "never":
        return None, None
    if resume == "auto":
        start = newest_checkpoint(session, folder, listener.message)
        if start is None:
            return None, None
    else:
        start = _given_checkpoint(session, recipe, Path(resume).resolve(), listener)
    best = _find_best(session, start, listener)
    if session.is_main:
        if resume != "auto":
            listener.message(f"resuming from {start.path}")
        abandon_newer(folder, start.step)
        for label, named in (("latest", start), ("best", best)):  # a kill may have come between renaming and naming
            if named is not None and named.path.parent.resolve() == folder.resolve():
                name_checkpoint(folder, label, named.path.name)
    return start, best


def _given_checkpoint(session: Session, recipe: Recipe, path: Path, listener: Listener) -> Checkpoint:
    """The one that `--resume` names. Raises: UserError if it is damaged or belongs to another recipe."""
    checkpoint, problem = check_together(session, path)
    if checkpoint is None:
        owner = Run(path.parent.parent)
        removed = removal_remedy(owner) if owner.file.is_file() and not path.exists() else ""
        raise UserError(problem, where="--resume", remedy=removed or "Give another checkpoint, or --resume auto.")
    run = Run(path.parent.parent)
    if run.recipe_file.is_file():
        differences = run.differences(recipe)
    elif checkpoint.manifest.training:
        differences = training_differences(checkpoint.manifest.training, recipe)
    else:
        differences = []
        listener.message("note: the checkpoint is outside its run folder and does not name its recipe: not compared")
    if differences:
        raise UserError(
            f"the checkpoint belongs to another recipe:{list_differences(differences)}",
            where=str(path),
            remedy="Train this recipe from model.source instead, or resume with the recipe that the checkpoint is of.",
        )
    return checkpoint


def _find_best(session: Session, start: Checkpoint, listener: Listener) -> Checkpoint | None:
    """The best one that `start` knows of, if it is still whole."""
    loop = start.manifest.loop
    if loop.get("best_value") is None or loop["best_step"] == start.step:
        return start if loop.get("best_value") is not None else None
    path = start.path.parent / checkpoint_name(loop["best_step"])
    best, problem = check_together(session, path)
    if best is None:
        listener.message(f"the best checkpoint so far is lost; the best of the following ones is taken ({problem})")
    return best
