"""The metric that chooses the best checkpoint, where the data does not define the one that the plan names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.metrics.catalogue import direction
from finetune.planning.plan import Plan

if TYPE_CHECKING:
    from finetune.tasks.artifacts import TaskArtifacts  # transformers; a sweep reads this file without it

BEST_METRIC = "best_metric"  # of the artifacts' settings, set by tasks that found out


def choosing_metric(plan: Plan, artifacts: TaskArtifacts) -> tuple[str, str]:
    """(metric, "max" or "min"): the plan's, unless the task found that it is not defined for this data."""
    name = artifacts.settings.get(BEST_METRIC)
    return (name, direction(name)) if name else (plan.training.best_metric, plan.training.best_mode)
