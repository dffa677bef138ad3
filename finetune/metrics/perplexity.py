"""Perplexity: exp of the mean loss a token. One sum over all tokens, so long texts weigh by their length."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from finetune.metrics.metric import LocalMetric


class Perplexity(LocalMetric):
    """loss_sums: [examples] summed loss (natural log) of each; weights: [examples] its tokens. exp(sum / sum).

    None without a single token, and where the mean loss is not finite or above 709 (exp would overflow).
    """

    higher_is_better: ClassVar[bool | None] = False
    inputs: ClassVar[tuple[str, ...]] = ("loss_sums", "weights")
    description = "exp(sum of losses / sum of tokens)."

    def value(self, *inputs: np.ndarray, labels: list[str] | None) -> float | None:
        loss_sums, weights = inputs
        tokens = int(weights.sum())
        if tokens == 0:
            return None
        mean = math.fsum(loss_sums) / tokens
        return math.exp(mean) if math.isfinite(mean) and mean < 709 else None
