"""Reward margin: mean reward of the chosen replies minus mean reward of the rejected ones."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class RewardMargin(LocalMetric):
    """chosen_rewards, rejected_rewards: float [pairs], NaN for the missing reply of an unpaired one.

    None if there are no chosen or no rejected replies.
    """

    inputs: ClassVar[tuple[str, ...]] = ("chosen_rewards", "rejected_rewards")
    description = "Mean of chosen minus rejected reward."
    undefined = "there are no chosen or no rejected replies"

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        chosen, rejected = inputs
        if not np.isfinite(chosen).any() or not np.isfinite(rejected).any():
            return None
        return float(np.nanmean(chosen) - np.nanmean(rejected))
