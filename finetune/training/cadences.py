"""How long a training is, and what is due after which of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from finetune.recipe.recipe import Recipe


@dataclass(frozen=True)
class TrainingLength:
    """In optimizer steps."""

    total_steps: int
    steps_per_epoch: int

    def epochs(self, step: int) -> float:
        """Passes over the training data that are done after `step` steps."""
        return step / self.steps_per_epoch


class Due(NamedTuple):
    """What follows a step. Each of them needs the figures of that step, so they are read before the step ends."""

    log: bool
    evaluate: bool
    save: bool


@dataclass(frozen=True)
class Cadences:
    """log_every, evaluate_every, save_every: in steps; the last step is due whatever they say, and the first is logged."""

    length: TrainingLength
    log_every: int
    evaluate_every: int
    save_every: int

    @classmethod
    def of(cls, recipe: Recipe, length: TrainingLength) -> Cadences:
        """As the recipe says."""
        evaluate, save = (
            length.steps_per_epoch if every == "epoch" else int(every)
            for every in (recipe.evaluation.every, recipe.checkpoint.every)
        )
        return cls(length, recipe.tracking.log_every, evaluate, save)

    def due(self, step: int) -> Due:
        """After step `step`, from 1."""
        last = step == self.length.total_steps
        return Due(
            log=step % self.log_every == 0 or step == 1 or last,
            evaluate=step % self.evaluate_every == 0 or last,
            save=step % self.save_every == 0 or last,
        )
