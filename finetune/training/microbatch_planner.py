"""Who computes what of a step, so that no rank waits for another. What the step trains on is the schedule's business."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.data.order.assignment import (
    Assignment,
    assign,
    assign_evaluation,
    assign_packs,
    assign_segments,
    work_shares,
)
from finetune.data.order.cost import CostModel
from finetune.data.order.packing import Packing
from finetune.data.order.schedule import Schedule, Step
from finetune.distributed.session import Session
from finetune.recipe.recipe import Recipe
from finetune.tasks.task import Kit
from finetune.training.step import StepResult


class MicroBatchPlanner:
    """Deals examples to ranks by cost: padded micro-batches, padding-free ones, or packs. The same on every rank."""

    def __init__(self, kit: Kit, cost: CostModel, *, ranks: int, micro_batch: int, lockstep: bool = True) -> None:
        """lockstep: the engine communicates in every micro-batch, so all ranks run equally many."""
        self.kit, self.cost, self.ranks, self.micro_batch, self.lockstep = kit, cost, ranks, micro_batch, lockstep
        self._lengths = np.asarray(kit.examples["train"].costs, dtype=np.int64)
        self._costs = cost.of(self._lengths)

    def schedule(self, recipe: Recipe, window: int | None) -> Schedule:
        """The order of the training examples: a pure function of the recipe and their lengths. window: steps that share
        out examples by length; None: the schedule's own choice.
        """
        packed = self.kit.packing == "packed"
        return Schedule(
            self._costs,
            seed=recipe.seed,
            global_batch=recipe.training.global_batch,
            window=window,
            packing=Packing(self._lengths, self.kit.capacity) if packed else None,
        )

    def assign(self, step: Step, speed: Sequence[float] | None, *, overhead: float = 0.0) -> Assignment:
        """Micro-batches of each rank, as positions in `flat(step)`. overhead: cost of a step on each rank besides."""
        examples = flat(step)
        costs, lengths, capacity = self._costs[examples], self._lengths[examples], self.kit.capacity
        if speed is not None and overhead:
            speed = work_shares(speed, float(costs.sum()), overhead)
        among: dict[str, Any] = {"speed": speed, "lockstep": self.lockstep}
        if self.kit.packing == "none":
            return assign(costs, self.ranks, micro_batch=self.micro_batch, **among)
        if self.kit.packing == "padding_free":
            return assign_segments(costs, lengths, self.ranks, capacity=capacity, **among)
        sizes = [len(item) for item in step.items]
        return assign_packs(sizes, costs, lengths, self.ranks, capacity=capacity, **among)

    def cheapest(self, examples: list[int]) -> int:
        """The one that a ghost runs."""
        return examples[int(np.argmin(self._costs[examples]))]

    def assign_split(self, split: str, speed: Sequence[float] | None = None) -> Assignment:
        """A whole split for evaluation: every example exactly once."""
        lengths = np.asarray(self.kit.examples[split].costs, dtype=np.int64)
        if self.kit.packing == "none":
            return assign_evaluation(self.cost.of(lengths), self.ranks, self.micro_batch, speed=speed)
        capacity = max(self.kit.capacity, int(lengths.max(initial=1)))
        micro_batch = max(1, capacity // int(lengths.max(initial=1)))
        return assign_evaluation(self.cost.of(lengths), self.ranks, micro_batch, speed=speed)


def flat(step: Step) -> list[int]:
    """The examples of a step, pack after pack."""
    return [example for item in step.items for example in item]


class RankSpeedEstimator:
    """Relative speeds of the ranks: equal, as the recipe says, or measured over the first steps and watched from then on.

    A step takes rank r (overhead + cost of its share) / speed r. Its time is measured without what it spends in
    collectives, so no rank's wait for another is in it. overhead: what a step costs each rank whatever its share (the
    optimiser, its part in collectives), in the unit of costs; found as what forward and backward pass leave over, but not
    under ZeRO-3, whose passes communicate. After that a rank is as much faster or slower as its forward passes are, every
    WATCHED steps (not under ZeRO-3). Speeds change who computes an example, so sums are rounded in another order; nothing
    else.
    """

    WARM, MEASURED, WATCHED = 2, 8, 10
    TAKEN = 0.25  # of a change in one look: on two noisy CPU cores a median of ten steps is 6 percent off
    WORTH_TELLING = 0.15  # how much a speed changes before people hear of it

    def __init__(self, asked: str | Sequence[float], session: Session, *, lookahead: int, passes: float = 3.0) -> None:
        """passes: forward and backward pass together, in forward passes."""
        self.session, self.lookahead, self.passes = session, lookahead, passes
        self.overhead = 0.0
        self.measuring = asked == "auto" and session.replicas > 1
        self.watching = False
        self._known: list[tuple[int, list[float]]] = [] if isinstance(asked, str) else [(0, list(asked))]
        self._seen = 0
        self._measured: list[tuple[float, float, float]] = []  # cost, seconds of passes, seconds of the whole step
        self._speeds = self._rates = np.zeros(0)  # of each rank; its cost a second of passes when last looked at
        self._told: list[float] = []

    @property
    def speeds(self) -> list[float] | None:
        """The latest; None: equal."""
        return self._known[-1][1] if self._known else None

    def at(self, step: int) -> list[float] | None:
        """Speeds for step `step`; None: equal. The same on every rank, and for steps that are fetched ahead."""
        return next((speeds for first, speeds in reversed(self._known) if first <= step), None)

    def note(self, index: int, cost: float, result: StepResult, own_seconds: float | None) -> str:
        """After each step while `measuring` or `watching`, on all ranks alike. What to tell people; "" for nothing.

        index: of the step; cost: of this rank's share; own_seconds: on this rank without collectives, None if unknown.
        """
        passes = self.passes * result.forward_pass.read()
        if self.watching:
            if cost > 0 and passes > 0:
                self._measured.append((cost, passes, 0.0))
            self._seen += 1
            return self._watch(index) if self._seen % self.WATCHED == 0 else ""
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
        self.watching = not self.session.shards_weights
        return self._tell()

    def _conclude(self, index: int, ranks: list[tuple[float, float, float]]) -> None:
        cost, passes, whole = np.array(ranks, dtype=np.float64).T
        if not self.session.shards_weights:
            besides = np.maximum(whole - passes, 0.0)
            self.overhead = float(np.median(besides * cost / np.maximum(passes, 1e-9)))
        self._rates = np.where(cost > 0, cost / np.maximum(passes, 1e-9), np.nan)
        self._take(index, (self.overhead + cost) / np.maximum(whole, 1e-9))

    def _watch(self, index: int) -> str:
        """Ranks whose passes take another time than before. A part of the change counts, since steps differ."""
        mine = [cost / passes for cost, passes, _ in self._measured]
        self._measured = []
        now = np.array(self.session.all_gather(float(np.median(mine)) if mine else math.nan))
        change = (now / self._rates) ** self.TAKEN
        change[np.isnan(change)] = 1.0  # a rank that has nothing to do, or had
        self._rates = np.where(np.isnan(self._rates), now, self._rates * change)
        self._take(index, self._speeds * change)
        return self._tell()

    def _take(self, index: int, speeds: np.ndarray) -> None:
        """Speeds of ranks, which hold for steps that are not dealt yet."""
        self._speeds = speeds
        replicas = speeds.reshape(-1, self.session.split).min(axis=1)  # a replica is as fast as its slowest rank
        relative = [round(float(speed), 3) or 1e-3 for speed in replicas / replicas.max()]
        self._known = [*self._known[-3:], (index + 1 + self.lookahead, relative)]

    def _tell(self) -> str:
        now = self.speeds or []
        if (
            self._told
            and max(abs(one - other) for one, other in zip(now, self._told, strict=True)) < self.WORTH_TELLING
        ):
            return ""
        again, self._told = bool(self._told), now
        return f"ranks measured{' again' if again else ''}: relative speeds {now}"
