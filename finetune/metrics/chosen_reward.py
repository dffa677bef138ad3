"""Mean reward of the chosen replies."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class ChosenReward(LocalMetric):
    """chosen_rewards: [examples]. None without examples."""

    inputs: ClassVar[tuple[str, ...]] = ("chosen_rewards",)
    description = "Mean reward of the chosen replies."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        (chosen,) = inputs
        return float(chosen.mean()) if len(chosen) else None
