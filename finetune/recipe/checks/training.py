"""Contradictions about the training itself: its length, learning rate and labels."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.errors import Fault
from finetune.recipe.checks.context import CheckContext
from finetune.recipe.checks.deepspeed import DEEPSPEED_OFF
from finetune.recipe.optimizers import BLOCK, OPTIMIZERS


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
    if context.recipe.training.label_smoothing and not context.card.loss.label_smoothing:
        yield context.fault(
            "training.label_smoothing", f"the task {context.card.name} has no labels to smooth", allowed="0"
        )


def check_whole_parameters(context: CheckContext) -> Iterator[Fault]:
    """State in 8 bits is of whole parameters, which DeepSpeed's optimizers do not get."""
    spec, parallel = OPTIMIZERS[context.recipe.training.optimizer], context.recipe.parallel
    if spec.scales and parallel.deepspeed != DEEPSPEED_OFF:
        is_default = context.draft.get(("parallel", "deepspeed")) is None
        given = f"{parallel.deepspeed}{', the default,' if is_default else ''}"
        yield context.fault(
            "training.optimizer",
            f"{BLOCK} elements of {spec.name}'s state share a scale, and {given} cuts parameters where ranks meet: "
            "the numbers would depend on the number of ranks",
            allowed=f"{spec.name} with parallel.deepspeed: none; or {spec.same_update}",
            on=("parallel.deepspeed",),
        )
