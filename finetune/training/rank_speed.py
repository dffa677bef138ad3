"""How fast each rank is, so that slower ranks get less to compute."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from finetune.distributed.session import Session
from finetune.distributed.stopwatch import Stopwatch
from finetune.training.step import StepResult


class RankSpeedEstimator:
    """Relative speeds of the ranks: equal, as the recipe says, or measured over the first steps and watched from then on.

    A step takes rank r (overhead + cost of its share) / speed r. Its time is measured without what it spends in
    collectives, so no rank's wait for another is part of it. overhead: what a step costs each rank whatever its share (the
    optimizer, its part in collectives), in the unit of costs; computed as what forward and backward pass leave over, but
    not where passes communicate (ZeRO-3). Afterwards, every WATCHED steps, a rank's speed follows that of its forward
    passes (not under ZeRO-3). Speeds change who computes an example, so sums are rounded in another order; nothing else.
    """

    WARM, MEASURED, WATCHED = 2, 8, 10
    SMOOTHING = 0.25  # of a change per measurement: on two noisy CPU cores a median of ten steps is 6 percent off
    WORTH_REPORTING = 0.15  # how much a speed changes before it is reported

    def __init__(
        self,
        asked: str | Sequence[float],
        session: Session,
        *,
        lookahead: int,
        passes: float = 3.0,
        shards_weights: bool = False,
    ) -> None:
        """passes: forward and backward pass together, in forward passes. shards_weights: as the engine says."""
        self.session, self.lookahead, self.passes = session, lookahead, passes
        self.shards_weights = shards_weights
        self.overhead = 0.0
        self.measuring = asked == "auto" and session.replicas > 1
        self.watching = False
        self._known: list[tuple[int, list[float]]] = [] if isinstance(asked, str) else [(0, list(asked))]
        self._seen = 0
        self._measured: list[tuple[float, float, float]] = []  # cost, seconds of passes, seconds of the whole step
        self._watched: list[tuple[float, Stopwatch]] = []  # cost, forward passes
        self._speeds = self._rates = np.zeros(0)  # of each rank; its cost per second of passes when last measured
        self._reported: list[float] = []

    @property
    def speeds(self) -> list[float] | None:
        """The latest; None: equal."""
        return self._known[-1][1] if self._known else None

    def at(self, step: int) -> list[float] | None:
        """Speeds for step `step`; None: equal. The same on every rank, and for steps that are fetched ahead."""
        return next((speeds for first, speeds in reversed(self._known) if first <= step), None)

    def note(self, index: int, cost: float, result: StepResult, own_seconds: float | None) -> str:
        """After each step, on all ranks alike. A line for the user; "" for nothing.

        index: of the step; cost: of this rank's share; own_seconds: on this rank without collectives, None if unknown.
        """
        if not (self.measuring or self.watching):
            return ""
        if self.watching:
            self._watched.append((cost, result.forward_pass))
            self._seen += 1
            return self._watch(index) if self._seen % self.WATCHED == 0 else ""
        passes = self.passes * result.forward_pass.read()
        self._seen += 1
        if self._seen > self.WARM and own_seconds is not None:
            self._measured.append((cost, passes, own_seconds))
        if self._seen < self.WARM + self.MEASURED:
            return ""
        self.measuring, self._seen = False, 0
        ranks = self.session.all_gather(np.median(self._measured, axis=0).tolist() if self._measured else None)
        self._measured = []
        if None in ranks:
            return "the profiler does not see this machine's devices, so ranks could not be measured: equal shares"
        self._conclude(index, ranks)
        self.watching = not self.shards_weights
        return self._report()

    def _conclude(self, index: int, ranks: list[tuple[float, float, float]]) -> None:
        cost, passes, whole = np.array(ranks, dtype=np.float64).T
        if not self.shards_weights:
            besides = np.maximum(whole - passes, 0.0)
            self.overhead = float(np.median(besides * cost / np.maximum(passes, 1e-9)))
        self._rates = np.where(cost > 0, cost / np.maximum(passes, 1e-9), np.nan)
        self._take(index, (self.overhead + cost) / np.maximum(whole, 1e-9))

    def _watch(self, index: int) -> str:
        """Ranks whose passes take another time than before. A part of the change counts, since steps differ."""
        passes = [(cost, self.passes * watch.read()) for cost, watch in self._watched]  # a GPU is asked for all at once
        mine = [cost / seconds for cost, seconds in passes if cost > 0 and seconds > 0]
        self._watched = []
        now = np.array(self.session.all_gather(float(np.median(mine)) if mine else math.nan))
        change = (now / self._rates) ** self.SMOOTHING
        change[np.isnan(change)] = 1.0  # a rank that has nothing to do, or had
        self._rates = np.where(np.isnan(self._rates), now, self._rates * change)
        self._take(index, self._speeds * change)
        return self._report()

    def _take(self, index: int, speeds: np.ndarray) -> None:
        """Speeds of ranks, which hold for steps that are not assigned yet."""
        self._speeds = speeds
        replicas = speeds.reshape(-1, self.session.replica_size).min(axis=1)  # a replica is as fast as its slowest rank
        relative = [round(float(speed), 3) or 1e-3 for speed in replicas / replicas.max()]
        self._known = [*self._known[-3:], (index + 1 + self.lookahead, relative)]

    def _report(self) -> str:
        now = self.speeds or []
        if (
            self._reported
            and max(abs(one - other) for one, other in zip(now, self._reported, strict=True)) < self.WORTH_REPORTING
        ):
            return ""
        again, self._reported = bool(self._reported), now
        return f"ranks measured{' again' if again else ''}: relative speeds {now}"
