"""Metrics that cannot be computed."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.errors import Fault
from finetune.recipe.checks.context import CheckContext
from finetune.recipe.faults import nearest


def check_metrics(context: CheckContext) -> Iterator[Fault]:
    """Metrics that the task can feed, and a `best` that is among those computed."""
    evaluation, card = context.recipe.evaluation, context.card
    chosen = list(card.metrics.default if evaluation.metrics is None else evaluation.metrics)
    unknown = [name for name in chosen if name not in card.metrics.available]
    for name in unknown:
        path = ("evaluation", "metrics", chosen.index(name))
        message = (
            f"not a metric of the task {card.name}" if name != "loss" else "the loss is always computed; leave it out"
        )
        yield context.fault(
            path, message, allowed=", ".join(card.metrics.available), near=nearest(name, card.metrics.available)
        )
    best = evaluation.best
    if best and best != "loss" and best not in chosen:
        near = nearest(best, [*chosen, "loss"])
        known = (
            f": add it to evaluation.metrics, or take one of {', '.join(chosen)}"
            if best in card.metrics.available
            else ""
        )
        yield context.fault(
            "evaluation.best",
            f"not among the metrics that are computed{known}",
            allowed=", ".join(["loss", *chosen]),
            near=near,
            on=("evaluation.metrics",),
        )
