"""Contradictions about the training itself: its length, learning rate and labels."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.errors import Fault
from finetune.recipe.checks.context import CheckContext


def check_length(context: CheckContext) -> Iterator[Fault]:
    """Epochs or steps, not both; a warmup that ends."""
    training = context.recipe.training
    if training.epochs is not None and training.steps is not None:
        yield context.fault(
            "training.steps",
            f"given beside training.epochs ({training.epochs}): a run has one length",
            allowed="one of the two: set the other to null",
            on=("training.epochs",),
        )
    if training.steps is not None and training.warmup >= max(training.steps, 2):
        yield context.fault(
            "training.warmup",
            f"as long as the run of {training.steps} steps: the learning rate never reaches its peak",
            on=("training.steps",),
        )


def check_learning_rate(context: CheckContext) -> Iterator[Fault]:
    """The end of the schedule is not above its peak."""
    training = context.recipe.training
    if training.min_learning_rate > training.learning_rate:
        yield context.fault(
            "training.min_learning_rate",
            "above training.learning_rate",
            allowed=f"at most {training.learning_rate:g}",
            on=("training.learning_rate",),
        )


def check_label_smoothing(context: CheckContext) -> Iterator[Fault]:
    """Label smoothing needs labels."""
    if context.recipe.training.label_smoothing and not context.card.label_smoothing:
        yield context.fault(
            "training.label_smoothing", f"the task {context.card.name} has no labels to smooth", allowed="0"
        )
