"""Random numbers that depend on (seed, epoch, purpose) and on nothing else: no rank, no history, no machine."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """One stream of numbers each, so that one use never shifts another."""

    ORDER = 0  # the order of examples
    TIES = 1  # which of the examples of one length goes into which pack
    PACKS = 2  # the order of packs
    WINDOWS = 3  # the order of steps inside a window


def draw(count: int, *, seed: int, epoch: int, purpose: Purpose) -> np.ndarray:
    """`count` random uint64.

    The raw output of the counter-based Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
    keyed by (seed, epoch, purpose). NumPy keeps raw bit streams stable over versions, which it does not promise of
    `Generator.permutation` and `shuffle` (NEP 19): that is why orders below are sorts of these numbers.
    """
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed and epoch must not be negative: seed {seed}, epoch {epoch}")
    key = np.array([seed % 2**64, epoch * len(Purpose) + purpose], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def permute(count: int, *, seed: int, epoch: int, purpose: Purpose) -> np.ndarray:
    """A permutation of 0..count-1 (int64), a pure function of its arguments."""
    return np.argsort(draw(count, seed=seed, epoch=epoch, purpose=purpose), kind="stable")
