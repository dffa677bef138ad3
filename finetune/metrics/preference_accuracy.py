"""Preference accuracy: the share of pairs whose chosen reply has the higher reward."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class PreferenceAccuracy(LocalMetric):
    """chosen_rewards, rejected_rewards: [pairs]. A draw counts half. None without pairs.

    Of an unpaired reply one side is NaN and counts as 0: a desirable reply is right if its reward is above 0.
    """

    inputs: ClassVar[tuple[str, ...]] = ("chosen_rewards", "rejected_rewards")
    description = "Share of pairs whose chosen reply has the higher reward; a draw counts half."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        chosen, rejected = (np.nan_to_num(rewards) for rewards in inputs)
        return float(((chosen > rejected) + 0.5 * (chosen == rejected)).mean()) if len(chosen) else None
