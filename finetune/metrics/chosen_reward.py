"""Mean reward of the chosen replies."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class ChosenReward(LocalMetric):
    """chosen_rewards: [examples], NaN where a reply is not of that side. None without any."""

    inputs: ClassVar[tuple[str, ...]] = ("chosen_rewards",)
    description = "Mean reward of the chosen replies."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        (chosen,) = inputs
        return float(np.nanmean(chosen)) if np.isfinite(chosen).any() else None
