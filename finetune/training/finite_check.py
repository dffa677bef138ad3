"""A loss or a gradient norm that is not finite ends the training, before weights with it are evaluated or saved."""

from __future__ import annotations

import math

from finetune.distributed.engines.engine import Engine
from finetune.errors import DIVERGED, TrainingFailed
from finetune.training.checkpoint import Saver
from finetune.training.step import StepResult


class FiniteCheck:
    """Checks what each step gave. All ranks make one and call it alike."""

    def __init__(self, engine: Engine, saver: Saver) -> None:
        self._engine, self._saver = engine, saver
        self._waiting: tuple[StepResult, int] | None = None

    def note(self, result: StepResult, step: int, *, now: bool) -> None:
        """Check that what step `step` gave is finite. now: at once, because its figures or its weights are about to leave
        this step, or because reading them waits for nothing; otherwise with the next step, when a GPU is at work on that.
        Raises: TrainingFailed.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._check(*waiting)
        if now:
            self._check(result, step)
        else:
            self._waiting = (result, step)

    def _check(self, result: StepResult, step: int) -> None:
        """A loss that is not finite ends the training; the weights in the last checkpoint are good."""
        broken_gradient = not math.isfinite(result.grad_norm) and not self._engine.scales_loss
        if result.finite and not broken_gradient:
            return
        self._saver.finish()
        nonfinite_ids = sorted(i for some in self._engine.session.all_gather(result.nonfinite_ids) for i in some)
        what = "loss" if not result.finite else "gradient norm"
        latest = self._saver.latest
        kept = f"the checkpoint of step {latest.step} is good" if latest else "no checkpoint was written yet"
        raise TrainingFailed(
            f"the {what} is {result.loss if not result.finite else result.grad_norm}",
            where=f"step {step}" + (f", examples {nonfinite_ids[:32]}" if nonfinite_ids else ""),
            remedy=f"{kept}; inspect these examples, lower the learning rate or increase warmup",
            kind=DIVERGED,
        )
