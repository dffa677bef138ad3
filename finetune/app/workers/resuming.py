"""Where a training resumes: the checkpoint to start from, the best one so far, and the data before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.app.data_changes import data_changes
from finetune.app.edited_recipe import refuse_edited_recipe
from finetune.distributed.session import Session
from finetune.errors import UserError
from finetune.events import Listener
from finetune.planning.plan import Plan
from finetune.recipe.recipe import Recipe
from finetune.tracking.journal import cut, describe_unreadable
from finetune.tracking.retention import removal_remedy
from finetune.tracking.run import Run
from finetune.training.checkpoint_manifest import Checkpoint, checkpoint_name
from finetune.training.checkpoint_reader import check_together, newest_checkpoint
from finetune.training.checkpoint_writer import abandon_newer, name_checkpoint


@dataclass(frozen=True)
class Start:
    """Where a training begins. checkpoint: None: at step 0. best: the one whose evaluation counts as the best so far.
    data_version: 1, and one more for each time that the run was continued with other data.
    """

    checkpoint: Checkpoint | None
    best: Checkpoint | None
    data_version: int


def find_start(
    session: Session, run: Run, recipe: Recipe, resume: str, data: dict[str, dict[str, Any]], listener: Listener
) -> Start:
    """Where to begin, once run.json keeps what is trained on from there. data: split -> its record. All ranks call it.

    Raises: UserError for a checkpoint that is damaged, or that another recipe has trained.
    """
    checkpoint, best = find_checkpoints(session, run, recipe, resume, listener)
    kept = None
    if session.is_main:
        changes = keep_data_record(run, checkpoint, data, listener)
        kept = changes, 1 + len(run.read().get("data_changes") or ())
    changes, data_version = session.broadcast(kept)
    if "validation" in changes and best is not None:
        listener.message("the best checkpoint so far was measured on other rows: it does not count any more")
        best = None
    return Start(checkpoint, best, data_version)


def keep_data_record(
    run: Run, start: Checkpoint | None, now: dict[str, dict[str, Any]], listener: Listener
) -> dict[str, str]:
    """Keep in run.json what is trained on. Where it is not what was trained on before `start` (--data-changed), say so and
    keep that, too. Returns split -> what has changed. Rank 0 only.
    """
    changes: list[str] = []
    fields: dict[str, Any] = {"data": now}
    if start is not None:
        owner = Run(start.path.parent.parent)
        before = owner.read().get("data") or {} if owner.file.is_file() else {}
        changes = data_changes(before, now)
        if any("content" not in record for record in before.values()):
            listener.message("note: an earlier version did not keep a digest of the data; only rows were counted")
        for change in changes:
            listener.message(f"THE DATA HAS CHANGED since {start.path.name}: {change}")
        if changes:
            listener.message("figures before and after are of different data")
            fields["data_changes"] = [*run.read().get("data_changes", []), {"step": start.step, "changes": changes}]
    run.update(**fields)
    return dict(change.split(": ", 1) for change in changes)


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
        start = _given_checkpoint(session, Path(resume).resolve(), listener)
    refuse_edited_recipe(start.path, start.manifest, recipe)
    best = _find_best(session, start, listener)
    if session.is_main:
        if resume != "auto":
            listener.message(f"resuming from {start.path}")
        else:
            for note in _lost_rows(run.metrics_file, start.step):
                listener.message(note)
        abandon_newer(folder, start.step)
        if start.manifest.loop.get("unevaluated"):
            cut(run.metrics_file, start.step, evaluated=False)
        for label, named in (("latest", start), ("best", best)):  # a kill may have come between renaming and naming
            if named is not None and named.path.parent.resolve() == folder.resolve():
                name_checkpoint(folder, label, named.path.name)
    return start, best


def _lost_rows(metrics: Path, step: int) -> list[str]:
    """Notes on rows that the journal of a run which resumes after `step` should have: its curves lack them."""
    if not metrics.is_file():
        return [f"note: {metrics} is gone: curves and the report begin after step {step:,}"]
    damage = describe_unreadable(metrics)
    return [f"note: {damage} of {metrics}, and removed"] if damage else []


def _given_checkpoint(session: Session, path: Path, listener: Listener) -> Checkpoint:
    """The one that `--resume` names, whose run's recipe was compared before. Raises: UserError if it is damaged."""
    checkpoint, problem = check_together(session, path)
    if checkpoint is None:
        owner = Run(path.parent.parent)
        removed = removal_remedy(owner) if owner.file.is_file() and not path.exists() else ""
        raise UserError(problem, where="--resume", remedy=removed or "Give another checkpoint, or --resume auto.")
    run = Run(path.parent.parent)
    if not run.recipe_file.is_file() and not checkpoint.manifest.training:
        listener.message("note: the checkpoint is outside its run folder and does not name its recipe: not compared")
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
