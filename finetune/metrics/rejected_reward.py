"""Mean reward of the rejected replies."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class RejectedReward(LocalMetric):
    """rejected_rewards: float [examples], NaN for an unpaired chosen reply. None if there are no rejected replies."""

    higher_is_better: ClassVar[bool | None] = False
    inputs: ClassVar[tuple[str, ...]] = ("rejected_rewards",)
    description = "Mean reward of the rejected replies."
    undefined = "there are no rejected replies"

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        (rejected,) = inputs
        return float(np.nanmean(rejected)) if np.isfinite(rejected).any() else None
