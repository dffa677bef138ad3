"""Random numbers that depend on (seed, epoch, purpose) only: not on the rank, the history or the machine."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Each purpose has its own stream of random numbers, so that one use never affects another."""

    ORDER = 0  # the order of examples
    TIES = 1  # which of several examples of equal length goes into which pack
    PACKS = 2  # the order of packs
    WINDOWS = 3  # which groups of a window form a step


def draw(count: int, *, seed: int, epoch: int, purpose: Purpose) -> np.ndarray:
    """`count` random numbers, uint64 [count].

    The raw output of the counter-based generator Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2,
    3", 2011), keyed by (seed, epoch, purpose). NumPy guarantees that raw bit streams stay the same across versions, but
    not `Generator.permutation` and `shuffle` (NEP 19). Permutations are therefore made by sorting these numbers.
    Raises: ValueError for a negative seed or epoch.
    """
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed and epoch must not be negative: seed {seed}, epoch {epoch}")
    key = np.array([seed % 2**64, epoch * len(Purpose) + purpose], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def permute(count: int, *, seed: int, epoch: int, purpose: Purpose) -> np.ndarray:
    """A random permutation of 0..count-1, int64 [count]. A pure function of its arguments."""
    return np.argsort(draw(count, seed=seed, epoch=epoch, purpose=purpose), kind="stable")
