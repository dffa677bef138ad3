"""How many tokens a padding-free micro-batch holds on a machine: chosen by passes that are measured there.

Any size gives the same losses, so this is the machine's business: larger micro-batches are faster until the device is busy
all the time, and need more memory. Pure functions; what is measured, and how the ranks agree, is up to `measure`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

MEASURED_UP_TO = {"cuda": 16_384}  # tokens, by device; on others, `data.capacity: auto` is what the training plan says
WORTH_GROWING = 1.03  # times the tokens per second of half the size
PASSES = 3  # of each size; the first one warms up and does not count
SECONDS = 10.0  # that the passes of a probe may take; the first of them takes as long as it takes


@dataclass(frozen=True)
class Measured:
    """Passes of one micro-batch, as all ranks agree on them. capacity: tokens that it may hold. tokens: that it held.

    seconds: forward and backward pass of the slowest rank; infinite where memory ran out. filled: peak memory of the
    passes / memory for it, of the fullest rank; 0 where that is unknown. whole: it holds all that a rank computes in a step.
    elapsed: seconds since the first pass ended, of the last rank.
    """

    capacity: int
    tokens: int
    seconds: float
    filled: float = 0.0
    whole: bool = False
    elapsed: float = 0.0

    @property
    def fits(self) -> bool:
        return self.filled <= 1 and math.isfinite(self.seconds)

    @property
    def rate(self) -> float:
        """Tokens per second and rank."""
        return self.tokens / self.seconds if self.seconds > 0 else math.inf


@dataclass(frozen=True)
class CapacityChoice:
    """capacity: in tokens. reason: why no larger one. measured: in the order of measuring."""

    capacity: int
    reason: str
    measured: tuple[Measured, ...]

    def in_words(self) -> str:
        """For people: "micro-batches of 2,048 tokens (...: 9,001 with 1,024; 9,400 with 2,048; not larger: no faster)"."""
        rates = "; ".join(f"{_rate(one)} with {one.capacity:,}" for one in self.measured)
        return (
            f"micro-batches of {self.capacity:,} tokens (data.capacity: auto; measured tokens per second and rank: {rates}; "
            f"not larger: {self.reason})"
        )


def choose_capacity(measure: Callable[[int], Measured], *, first: int, least: int, limit: int) -> CapacityChoice:
    """The smallest capacity from which doubling gains less than 3 percent, among those that fit: `first` doubled up to `limit`
    tokens; or, if `first` does not fit, halved down to what holds the longest example, of `least` tokens.

    measure: called with a capacity; the same figures on all ranks.
    """
    found = [measure(first)]
    while not found[-1].fits and found[-1].capacity // 2 >= least:
        found.append(measure(found[-1].capacity // 2))
    reason = _end_of_growth(found, limit)
    while not reason:
        found.append(measure(2 * found[-1].capacity))
        reason = _no_gain(found) or _end_of_growth(found, limit)
    grown = found[:-1] if len(found) > 1 and _no_gain(found) else found
    return CapacityChoice(grown[-1].capacity, reason, tuple(found))


def _no_gain(found: list[Measured]) -> str:
    """Why the last size is not taken; "" if it is, or if it is smaller than the one before."""
    if len(found) < 2 or found[-1].capacity < found[-2].capacity:
        return ""
    if not found[-1].fits:
        return "memory"
    return "" if found[-1].rate >= WORTH_GROWING * found[-2].rate else "no faster"


def _end_of_growth(found: list[Measured], limit: int) -> str:
    """Why twice the last size is not tried; "" if it is."""
    last = found[-1]
    if (len(found) > 1 and last.capacity < found[-2].capacity) or not last.fits:
        return "memory"
    if last.whole:
        return "a step has no more for a rank"
    if 2 * last.capacity > limit:
        return f"at most {limit:,} are tried"
    if _filled_next(found) > 1:
        return "memory, by forecast"
    if last.elapsed + 2 * PASSES * last.seconds > SECONDS:
        return f"measuring takes at most {SECONDS:.0f} s"
    return ""


def _filled_next(found: list[Measured]) -> float:
    """Memory of twice the last size: along the line through the last two, or twice that of the only one."""
    last = found[-1]
    per_token = last.filled / last.capacity
    if len(found) > 1:
        before = found[-2]
        per_token = (last.filled - before.filled) / (last.capacity - before.capacity)
    return last.filled + max(per_token, 0.0) * last.capacity


def _rate(measured: Measured) -> str:
    return f"{measured.rate:,.0f}" if measured.fits else "out of memory" if math.isinf(measured.seconds) else "too full"
