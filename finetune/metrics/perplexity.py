"""Perplexity: exp of the mean loss per token, over all tokens of the dataset."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class Perplexity(LocalMetric):
    """exp(sum of loss_sums / sum of weights).

    loss_sums: float [examples], the summed loss (natural log) of each example. weights: int [examples], its tokens.
    None without tokens, and if the mean loss is not finite or is above 709, where exp overflows.
    """

    higher_is_better: ClassVar[bool | None] = False
    inputs: ClassVar[tuple[str, ...]] = ("loss_sums", "weights")
    description = "exp(sum of losses / sum of tokens)."
    undefined = "there are no tokens, or the loss is not finite or above 709"

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        loss_sums, weights = inputs
        tokens = int(weights.sum())
        if tokens == 0:
            return None
        mean = math.fsum(loss_sums) / tokens
        return math.exp(mean) if math.isfinite(mean) and mean < 709 else None
