"""How far a training is, and which evaluation was the best: the loop's own state, stored in each checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from finetune.metrics import direction
from finetune.recipe.training import EarlyStopping


@dataclass
class Progress:
    """step: optimizer steps done. stale: evaluations since the best one. seconds: spent training, over all restarts.

    last: the figures of the last evaluation.
    """

    metric: str
    mode: str
    step: int = 0
    best_value: float | None = None
    best_step: int = 0
    stale: int = 0
    units: int = 0
    seconds: float = 0.0
    evaluated_step: int = -1
    last: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, metric: str, mode: str) -> Progress:
        """mode: "max", "min", or "auto" for the metric's own direction."""
        return cls(metric, direction(metric) if mode == "auto" else mode)

    def restore(self, stored: dict[str, Any]) -> None:
        """Take over what a checkpoint kept; of the best value only if it is of the same metric."""
        same = (stored.get("metric"), stored.get("mode")) == (self.metric, self.mode)
        for key in (
            "step",
            "units",
            "seconds",
            "evaluated_step",
            *(("best_value", "best_step", "stale") if same else ()),
        ):
            setattr(self, key, stored[key])
        self.last = dict(stored.get("last", {}))  # checkpoints of earlier versions have none

    def forget_best(self) -> None:
        """Its checkpoint is lost: the best of the evaluations to come counts."""
        self.best_value, self.best_step = None, 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def judge(self, scalars: dict[str, float], min_delta: float) -> bool:
        """Take in an evaluation at `step`; whether it is the best so far.

        A change below min_delta still becomes the best, but does not reset the patience of early stopping.
        """
        self.evaluated_step, self.last = self.step, dict(scalars)
        value = scalars.get(self.metric)
        if value is None:
            return False
        gain = (
            float("inf") if self.best_value is None else (value - self.best_value) * (1 if self.mode == "max" else -1)
        )
        self.stale = 0 if gain > min_delta else self.stale + 1
        if gain > 0:
            self.best_value, self.best_step = value, self.step
        return gain > 0

    def exhausted(self, early_stopping: EarlyStopping | None) -> bool:
        """Whether early stopping ends the training."""
        return early_stopping is not None and self.stale >= early_stopping.patience
