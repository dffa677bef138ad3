"""Which of two values of the metric that chooses the best checkpoint is better. No torch."""

from __future__ import annotations

from finetune.metrics.catalogue import direction
from finetune.recipe.evaluation import EvaluationSection


def best_mode(evaluation: EvaluationSection, metric: str) -> str:
    """Whether the largest ("max") or the smallest value ("min") is best. metric: that of the recipe, or of the task.

    Raises: UserError for a metric that is a table.
    """
    return direction(metric) if evaluation.best_mode == "auto" else evaluation.best_mode
