"""Mean reward of the chosen replies."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class ChosenReward(LocalMetric):
    """chosen_rewards: float [examples], NaN for an unpaired rejected reply. None if there are no chosen replies."""

    inputs: ClassVar[tuple[str, ...]] = ("chosen_rewards",)
    description = "Mean reward of the chosen replies."
    undefined = "there are no chosen replies"

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        (chosen,) = inputs
        return float(np.nanmean(chosen)) if np.isfinite(chosen).any() else None
