"""Noise for sampling that depends on nothing but (seed, row, position, token): the same on any device, in any batch.

Adding Gumbel noise to logits and taking the largest draws from their softmax (Gumbel, 1954; "Gumbel-max trick"). The
uniform numbers come from a counter-based hash (the finalizers of lowbias32, Wellons 2018, in two rounds with 64 bits of
key), as in Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def noise_key(seed: int, row: int, position: int) -> int:
    """63 bits that name the noise of one token of a reply. position: tokens of the reply before it."""
    name = f"{seed}:{row}:{position}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def gumbel_noise(keys: Tensor, tokens: Tensor) -> Tensor:
    """keys: int64 [N], one per row; tokens: int64 [N, K] or [1, K], token ids -> float32 [N, K]."""
    low, high = (keys & _MASK).unsqueeze(1), (keys >> 32).unsqueeze(1)
    bits = _mix(_mix((tokens * 0x9E3779B1 + low) & _MASK) ^ high)
    uniform = (bits.double() + 0.5) * 2.0**-32  # never 0 or 1
    return (-torch.log(-torch.log(uniform))).float()


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32 bits; int64 products overflow, and their low 32 bits are right."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
