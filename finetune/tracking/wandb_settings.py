"""What W&B gets of a run before its first row: the axis of each figure, which value counts as its best, and whether the
data has changed under it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.errors import UserError
from finetune.metrics.catalogue import CATALOGUE
from finetune.planning.stored import StoredPlan
from finetune.recipe.recipe import Recipe
from finetune.tasks import CARDS
from finetune.tracking.run import Run


@dataclass(frozen=True)
class DataVersions:
    """changes: [{"step", "changes": [line]}], as --data-changed left them in run.json. notes: the same for people."""

    changes: list[dict[str, Any]]
    notes: str


def data_versions(run: Run) -> DataVersions | None:
    """None for a run whose data never changed."""
    changes = [dict(one) for one in run.read().get("data_changes") or []]
    if not changes:
        return None
    lines = [f"- from step {one.get('step', 0):,}: {'; '.join(map(str, one.get('changes', ())))}" for one in changes]
    return DataVersions(changes, "\n".join(["The data changed while this run was trained (--data-changed):", *lines]))


def define_axes(wandb_run: Any, run: Run, recipe: Recipe) -> None:
    """All figures over `step`; of the loss and the metrics of the validation split the best value is the summary, so that
    the table of runs sorts by it, not by the last one.
    """
    wandb_run.define_metric("step")
    for split in ("train", "validation", "test"):
        wandb_run.define_metric(f"{split}/*", step_metric="step")
    for name, best in best_values(run, recipe).items():
        wandb_run.define_metric(f"validation/{name}", step_metric="step", summary=best)


def best_values(run: Run, recipe: Recipe) -> dict[str, str]:
    """metric -> "min" or "max", whichever value is best: of the loss, the metrics of the plan, and the one that chooses the
    best checkpoint.
    """
    found = {"loss": "min"}
    plan, card, evaluation = _training_plan(run), CARDS.get(recipe.task), recipe.evaluation
    chosen = plan.get("best_metric") or evaluation.best or (card.metrics.best if card is not None else "")
    for name in (*(plan.get("metrics") or evaluation.metrics or ()), *([chosen] if chosen else ())):
        if name in CATALOGUE and (better := CATALOGUE[name].direction) is not None:
            found[name] = better
    mode = plan.get("best_mode") or evaluation.best_mode
    if chosen and mode in ("min", "max"):
        found[chosen] = mode
    return found


def _training_plan(run: Run) -> dict[str, Any]:
    try:
        stored = StoredPlan.read(run.plan_file)
    except UserError:
        return {}
    return dict(stored.training) if stored is not None else {}
