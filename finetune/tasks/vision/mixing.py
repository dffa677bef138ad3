"""Mixup and CutMix: a training image blended with another one, its label shared between the two.

Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018); Yun et al., "CutMix" (2019). The partner and the share
are functions of (seed, epoch, example id), not of the micro-batch: however examples are assigned to ranks, each is mixed with
the same other one, and the loss stays an exact sum over images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

APART = 1 << 63  # keeps these draws apart from those of the pixels


@dataclass(frozen=True)
class Mix:
    """partner: position in the split. share: of the image itself, 0 to 1. cut: a box of the partner is pasted, or both
    are blended.
    """

    partner: int
    share: float
    cut: bool
    corner: tuple[float, float]


def choose_mix(example_id: int, count: int, *, mixup: float, cutmix: float, seed: int, epoch: int) -> Mix | None:
    """What example `example_id` of a split of `count` is mixed with; None if neither is asked for.

    mixup, cutmix: alpha of the Beta distribution of the shares; 0: not. With both, each half of the time.
    """
    if not mixup and not cutmix:
        return None
    key = np.array([seed, APART + (epoch << 40) + example_id], np.uint64)  # a list of both would become floats
    rng = np.random.Generator(np.random.Philox(key=key))
    cut = rng.random() < 0.5 if mixup and cutmix else bool(cutmix)
    alpha = cutmix if cut else mixup
    share = float(rng.beta(alpha, alpha))
    partner = int(rng.integers(count))
    return Mix(partner, share, cut, (float(rng.random()), float(rng.random())))


def mix_pixels(own: Any, other: Any, mix: Mix) -> tuple[np.ndarray, float]:
    """(pixels [K, H, W], share of `own` in them, for the labels). A pasted box has whole pixels: its share is counted."""
    own, other = np.asarray(own), np.asarray(other)
    if not mix.cut:
        return (own * mix.share + other * (1.0 - mix.share)).astype(own.dtype), mix.share
    height, width = own.shape[-2:]
    side = (1.0 - mix.share) ** 0.5
    high, wide = round(height * side), round(width * side)
    top, left = round(mix.corner[0] * (height - high)), round(mix.corner[1] * (width - wide))
    mixed = own.copy()
    mixed[:, top : top + high, left : left + wide] = other[:, top : top + high, left : left + wide]
    return mixed, 1.0 - high * wide / (height * width)
