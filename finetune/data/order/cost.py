"""The computational cost of an example: a*L + b*L^2 for a sequence of L tokens, because attention is quadratic.

Costs are used for load balancing, where only their ratios matter; their unit is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CostModel:
    """cost = a * length + b * length**2. The cost of a pack is the sum over its segments: attention never crosses them.

    Raises: ValueError if a or b is negative, or both are 0.
    """

    a: float = 1.0
    b: float = 0.0

    def __post_init__(self) -> None:
        if min(self.a, self.b) < 0 or self.a + self.b <= 0:
            raise ValueError(f"costs must be positive, but a is {self.a} and b is {self.b}")

    def of(self, lengths: np.ndarray | Sequence[int]) -> np.ndarray:
        """Cost of each length: int [n] -> float64 [n]."""
        tokens = np.asarray(lengths, dtype=np.float64)
        return tokens * (self.a + self.b * tokens)

    @classmethod
    def from_config_shape(
        cls,
        *,
        hidden: int,
        layers: int,
        heads: int,
        intermediate: int,
        vocab: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        gated: bool = True,
        causal: bool = True,
    ) -> CostModel:
        """The cost model of a transformer of the given shape, in units of the dense work per token (a = 1).

        Floating-point operations of the forward pass, two per weight and token (PaLM, Chowdhery et al. 2022, appendix
        B; Chinchilla, Hoffmann et al. 2022, appendix F; Megatron-LM, Narayanan et al. 2021, appendix):
            dense      2 * (layers * (query + key + value + output + feed-forward weights) + hidden * vocab)   per token
            attention  4 * layers * heads * head_dim * L   per token, for scores and values; half of it if causal
        The backward pass costs twice as much for both terms and does not change their ratio.

        gated: the feed-forward block has three matrices (SwiGLU) instead of two.
        Example: Llama-3.1-8B gives b = 1.75e-5; at 57,000 tokens, attention costs as much as everything else.
        """
        width = heads * (head_dim or hidden // heads)
        kv_width = width * (kv_heads or heads) // heads
        layer_weights = 2 * hidden * (width + kv_width) + (3 if gated else 2) * hidden * intermediate
        dense = 2.0 * (layers * layer_weights + hidden * vocab)
        attention = (2.0 if causal else 4.0) * layers * width
        return cls(a=1.0, b=attention / dense)
