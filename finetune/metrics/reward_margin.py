"""Reward margin: how far the chosen reply's reward lies above the rejected one"s, on average."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class RewardMargin(LocalMetric):
    """chosen_rewards, rejected_rewards: [pairs], NaN where an unpaired reply has no such side. None without either."""

    inputs: ClassVar[tuple[str, ...]] = ("chosen_rewards", "rejected_rewards")
    description = "Mean of chosen minus rejected reward."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        chosen, rejected = inputs
        if not np.isfinite(chosen).any() or not np.isfinite(rejected).any():
            return None
        return float(np.nanmean(chosen) - np.nanmean(rejected))
