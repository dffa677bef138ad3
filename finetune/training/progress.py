"""How far a training is, and which evaluation was the best: the loop's own state, stored in each checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from finetune.metrics.evaluation import Evaluation
from finetune.recipe.training import EarlyStopping


@dataclass(frozen=True)
class Outcome:
    """best: the checkpoint whose weights are the result (the last one where nothing was validated), and the figures of
    its evaluation. last: those of the last evaluation.
    """

    steps: int
    seconds: float
    best_step: int
    best_value: float | None
    metric: str
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)


@dataclass
class Progress:
    """mode: max or min, the better direction of the metric. step: optimizer steps done. best_figures: "loss" and the
    metrics of the best evaluation. stale: evaluations since then. seconds: time in training, over all restarts.
    last: the figures of the last evaluation. unevaluated: the evaluation that is due at `step` is still to be done.
    """

    metric: str
    mode: str
    step: int = 0
    best_value: float | None = None
    best_step: int = 0
    best_figures: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    units: int = 0
    seconds: float = 0.0
    last: dict[str, float] = field(default_factory=dict)
    unevaluated: bool = False

    def restore(self, stored: dict[str, Any]) -> None:
        """Take over what a checkpoint kept; of the best value only if it is of the same metric."""
        same = (stored.get("metric"), stored.get("mode")) == (self.metric, self.mode)
        for key in (
            "step",
            "units",
            "seconds",
            *(("best_value", "best_step", "stale") if same else ()),
        ):
            setattr(self, key, stored[key])
        self.last = dict(stored.get("last", {}))  # checkpoints of earlier versions have none of these
        self.unevaluated = bool(stored.get("unevaluated", False))
        if same:  # a checkpoint of an earlier version has the one value alone
            only = {} if self.best_value is None else {self.metric: self.best_value}
            self.best_figures = dict(stored.get("best_figures", only))

    def count_step(self, units: int, seconds: float) -> None:
        """One more optimizer step is done, with so many units (over all ranks), in so many seconds."""
        self.step += 1
        self.units += units
        self.seconds += seconds

    def forget_best(self) -> None:
        """Its checkpoint is lost: the best of the evaluations to come counts, and so does the patience with them."""
        self.best_value, self.best_step, self.best_figures, self.stale = None, 0, {}, 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def judge(self, scalars: dict[str, float], min_delta: float) -> bool:
        """Take in an evaluation at `step`; whether it is the best so far.

        Of two that are equal, the one with the lower loss is: an F1 of 0 again and again does not choose the least trained
        model. A change below min_delta still becomes the best, but does not reset the patience of early stopping.
        """
        self.last, self.unevaluated = dict(scalars), False
        value = scalars.get(self.metric)
        if value is None:
            return False
        gain = (
            float("inf") if self.best_value is None else (value - self.best_value) * (1 if self.mode == "max" else -1)
        )
        self.stale = 0 if gain > min_delta else self.stale + 1
        better = gain > 0 or (gain == 0 and scalars.get("loss", math.inf) < self.best_figures.get("loss", -math.inf))
        if better:
            self.best_value, self.best_step = value, self.step
            self.best_figures = {key: figure for key, figure in scalars.items() if math.isfinite(figure)}
        return better

    def undefined_in_words(self, evaluation: Evaluation, early_stopping: EarlyStopping | None) -> list[str]:
        """A line for each metric without a value, and what follows from it where that metric chooses the best checkpoint."""
        lines = evaluation.undefined_in_words()
        if evaluation.split == "validation" and self.metric in lines:
            uncounted = early_stopping is not None and self.metric not in evaluation.scalars
            patience = ", and early stopping does not count this evaluation" if uncounted else ""
            lines[self.metric] += f". It chooses the best checkpoint: step {self.step} cannot be the best{patience}"
        return list(lines.values())

    def exhausted(self, early_stopping: EarlyStopping | None) -> bool:
        """Whether early stopping ends the training."""
        return early_stopping is not None and self.stale >= early_stopping.patience

    def outcome(self, best_step: int) -> Outcome:
        """What came of it. best_step: of the weights that are the result."""
        return Outcome(
            self.step, self.seconds, best_step, self.best_value, self.metric, last=self.last, best=self.best_figures
        )
