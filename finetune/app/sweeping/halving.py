"""Successive halving: which trials go on, from what their journals say. Pure.

Each trial trains on its full schedule. At rungs (1/8, 1/4, 1/2 of it, say) all trials that are still in are compared by
their evaluations, and the better half goes on; the others stay paused there (Jamieson and Talwalkar 2016, "Non-stochastic
best arm identification and hyperparameter optimization", algorithm 1 with eta 2, and the upper half where it is odd).
Nothing is remembered between two calls: the same observations give the same decision, in whatever order they came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WHOLE = 1.0


@dataclass(frozen=True)
class Observation:
    """What is known of a trial. evaluations: (step, score) by step; higher scores are better, minus infinity for a value
    that is not finite. total_steps: 0 until its training has begun. finished: trained to its end, or stopped early by its
    own recipe. failed: it will not go on.
    """

    evaluations: tuple[tuple[int, float], ...] = ()
    total_steps: int = 0
    finished: bool = False
    failed: bool = False

    def has_reached(self, fraction: float) -> bool:
        """Whether it was evaluated at this fraction of its schedule; the whole of it is reached when it has finished."""
        return self.finished or (fraction < WHOLE and self._evaluation_at(fraction) is not None)

    @property
    def is_at_end(self) -> bool:
        """Whether its last step was evaluated: what is left are the test split and the report."""
        return self._evaluation_at(WHOLE) is not None

    def score_at(self, fraction: float) -> float:
        """Its best score up to the first evaluation at this fraction or after it."""
        last = self._evaluation_at(fraction)
        scores = [score for step, score in self.evaluations if last is None or step <= last]
        return max(scores, default=-math.inf)

    def _evaluation_at(self, fraction: float) -> int | None:
        if not self.total_steps:
            return None
        least = fraction * self.total_steps - 1e-6
        return next((step for step, _ in self.evaluations if step >= least), None)


@dataclass(frozen=True)
class Decision:
    """wanted: trials that are to train now, until they were evaluated at `fraction`; () when the sweep is over.
    remaining: those that are still in, the best first where they were compared. rungs: how many each trial has passed.
    """

    fraction: float
    wanted: tuple[int, ...]
    remaining: tuple[int, ...]
    rungs: tuple[int, ...] = field(default=())


def rungs_of(trials: int, *, halving: bool = True) -> tuple[float, ...]:
    """Fractions of the schedule: 12 trials -> (1/8, 1/4, 1/2, 1). Without halving: (1,)."""
    halvings = int(math.log2(trials)) if halving and trials else 0
    return tuple(2.0**-power for power in range(halvings, -1, -1))


def decide(trials: Sequence[Observation], rungs: Sequence[float]) -> Decision:
    """The rung that is being worked on. Failed trials come last at every rung, so that others take their places."""
    remaining = tuple(range(len(trials)))
    passed = [0] * len(trials)
    for fraction in rungs:
        able = [index for index in remaining if not trials[index].failed]
        wanted = tuple(index for index in able if not trials[index].has_reached(fraction))
        if wanted or fraction == rungs[-1]:
            return Decision(fraction, wanted, _ranked(able, trials, fraction), tuple(passed))
        kept = math.ceil(len(remaining) / 2)
        remaining = _ranked(able, trials, fraction)[:kept]
        for index in remaining:
            passed[index] += 1
    raise AssertionError("there is at least one rung")


def rank(trials: Sequence[Observation], decision: Decision) -> list[int]:
    """All trials, the best first: by rungs passed, then by their best score; failed ones last."""

    def order(index: int) -> tuple[bool, int, bool, float, int]:
        one = trials[index]
        return one.failed, -decision.rungs[index], not one.finished, -one.score_at(WHOLE), index

    return sorted(range(len(trials)), key=order)


def _ranked(indices: Sequence[int], trials: Sequence[Observation], fraction: float) -> tuple[int, ...]:
    return tuple(sorted(indices, key=lambda index: (-trials[index].score_at(fraction), index)))
