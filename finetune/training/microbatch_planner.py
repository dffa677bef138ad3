"""Who computes what of a step, so that no rank waits for another. What the step trains on is up to the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data.order.assignment import (
    Assignment,
    assign,
    assign_packs,
    assign_segments,
)
from finetune.data.order.cost import CostModel
from finetune.data.order.packing import Packing
from finetune.data.order.schedule import Schedule, Step
from finetune.data.order.work_shares import work_shares
from finetune.planning.plan import Plan
from finetune.recipe.recipe import Recipe
from finetune.tasks.artifacts import TaskArtifacts

if TYPE_CHECKING:
    from finetune.distributed.engines.engine import Engine  # finetune inspect plans without engines


class MicroBatchPlanner:
    """Assigns examples to ranks by cost: padded micro-batches, padding-free ones, or packs. The same on every rank."""

    def __init__(
        self,
        lengths: np.ndarray | Sequence[int],
        cost: CostModel,
        *,
        ranks: int,
        micro_batch: int,
        packing: str = "none",
        capacity: int = 0,
        lockstep: bool = True,
    ) -> None:
        """lengths: of the training examples. packing, capacity: as in TrainingPlan. lockstep: the engine communicates in
        every micro-batch, so all ranks run equally many.
        """
        self.cost, self.ranks, self.micro_batch, self.lockstep = cost, ranks, micro_batch, lockstep
        self.packing, self.capacity = packing, capacity
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._costs = cost.of(self._lengths)

    @classmethod
    def of(
        cls,
        plan: Plan,
        artifacts: TaskArtifacts,
        engine: Engine,
        lengths: np.ndarray | Sequence[int],
        cost: CostModel,
    ) -> MicroBatchPlanner:
        """For the ranks of an engine, with the batches of a plan."""
        return cls(
            lengths,
            cost,
            ranks=engine.session.replicas,
            micro_batch=plan.batch.micro_batch,
            packing=plan.training.packing,
            capacity=plan.machine.capacity or artifacts.settings.get("capacity", 0),
            lockstep=engine.needs_lockstep,
        )

    def schedule(self, recipe: Recipe, window: int | None) -> Schedule:
        """The order of the training examples: a pure function of the recipe and their lengths. window: steps that share
        out examples by length; None: the schedule's own choice.
        """
        packed = self.packing == "packed"
        return Schedule(
            self._costs,
            seed=recipe.seed,
            global_batch=recipe.training.global_batch,
            window=window,
            packing=Packing(self._lengths, self.capacity) if packed else None,
        )

    def assign(self, step: Step, speed: Sequence[float] | None, *, overhead: float = 0.0) -> Assignment:
        """Micro-batches of each rank, as positions in `flat(step)`. overhead: further cost per step, on each rank."""
        examples = flat(step)
        costs, lengths, capacity = self._costs[examples], self._lengths[examples], self.capacity
        if speed is not None and overhead:
            speed = work_shares(speed, float(costs.sum()), overhead)
        among: dict[str, Any] = {"speed": speed, "lockstep": self.lockstep}
        if self.packing == "none":
            return assign(costs, self.ranks, micro_batch=self.micro_batch, **among)
        if self.packing == "padding_free":
            return assign_segments(costs, lengths, self.ranks, capacity=capacity, **among)
        sizes = [len(item) for item in step.items]
        return assign_packs(sizes, costs, lengths, self.ranks, capacity=capacity, **among)

    def cheapest(self, examples: list[int]) -> int:
        """The one that a dummy micro-batch runs."""
        return examples[int(np.argmin(self._costs[examples]))]


def flat(step: Step) -> list[int]:
    """The examples of a step, pack after pack."""
    return [example for item in step.items for example in item]
