"""Preference accuracy: fraction of pairs in which the chosen reply has the higher reward."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class PreferenceAccuracy(LocalMetric):
    """chosen_rewards, rejected_rewards: float [pairs]. A tie counts half. None without pairs.

    The missing reply of an unpaired one is NaN and counts as 0, so a desirable reply is correct if its reward is > 0.
    """

    inputs: ClassVar[tuple[str, ...]] = ("chosen_rewards", "rejected_rewards")
    description = "Fraction of pairs in which the chosen reply has the higher reward; a tie counts half."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        chosen, rejected = (np.nan_to_num(rewards) for rewards in inputs)
        return float(((chosen > rejected) + 0.5 * (chosen == rejected)).mean()) if len(chosen) else None
