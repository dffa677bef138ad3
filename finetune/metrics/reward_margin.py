"""Reward margin: how far the chosen reply's reward lies above the rejected one"s, on average."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class RewardMargin(LocalMetric):
    """chosen_rewards, rejected_rewards: [pairs]. None without pairs."""

    inputs: ClassVar[tuple[str, ...]] = ("chosen_rewards", "rejected_rewards")
    description = "Mean of chosen minus rejected reward."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        chosen, rejected = inputs
        return float((chosen - rejected).mean()) if len(chosen) else None
