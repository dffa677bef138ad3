"""Where the batches of a training come from: its training data, in the order of a schedule.

The loop knows `StepSource` alone. A source of rollouts, which a model that is trained generates, would be another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from finetune.data.order.cost import CostModel
from finetune.data.order.loader import RankStep, choose_workers, fetched_ahead, iterate_batches
from finetune.data.table import Examples
from finetune.distributed.engines.engine import Engine
from finetune.distributed.prefetcher import Prefetcher
from finetune.recipe.quotas import threads_each
from finetune.tasks.batch import Batch
from finetune.tasks.prepared_task import PreparedTask
from finetune.training.cadences import TrainingLength
from finetune.training.microbatch_planner import MicroBatchPlanner
from finetune.training.rank_speed import RankSpeedEstimator
from finetune.training.steps import ASSIGNED_AHEAD, ScheduledSteps


class StepBatches(Protocol):
    """This rank's batches, step after step."""

    def take(self) -> tuple[RankStep, list[Batch]]:
        """Those of the next step."""
        ...

    def fetch(self) -> None:
        """Get them ready. Called while the device is busy with the step before, whose weights are not updated yet: nothing
        that depends on the weights may be done here.
        """
        ...

    def waited(self) -> float:
        """Seconds since the last call in which the device waited for data."""
        ...


class StepSource(Protocol):
    """What a training trains on. All ranks make one and call it alike.

    rank_speed: takes the result of each step, and says how the next ones and evaluations are shared out. facts: for people.
    """

    @property
    def length(self) -> TrainingLength: ...

    @property
    def rank_speed(self) -> RankSpeedEstimator: ...

    @property
    def facts(self) -> dict[str, Any]: ...

    def open(self, from_step: int, notify: Callable[[str], None]) -> StepBatches:
        """The batches of step `from_step` (from 0) and of all that follow. The ranks of a replica get the same."""
        ...


@dataclass(frozen=True)
class ScheduledSource:
    """Examples of a training set. collate: makes a batch of examples; can be pickled. workers: loader processes."""

    examples: Examples
    collate: Callable[[Sequence[dict[str, Any]]], Batch]
    steps: ScheduledSteps
    device: torch.device
    workers: int = 0

    @classmethod
    def of(cls, prepared: PreparedTask, engine: Engine, cost: CostModel) -> ScheduledSource:
        """As the recipe says. cost: of an example by its length."""
        task, plan, recipe, session = prepared.task, prepared.plan, prepared.plan.recipe, engine.session
        examples = prepared.datasets["train"]
        planner = MicroBatchPlanner.of(plan, prepared.artifacts, engine, examples.costs, cost)
        schedule = planner.schedule(recipe, plan.training.balance_window)
        workers = choose_workers(
            recipe.data.workers,
            decodes=task.card.batches.decodes,
            device=session.device.type,
            cores=threads_each(session.local_world_size),
        )
        rank_speed = RankSpeedEstimator(
            recipe.parallel.rank_speed,
            session,
            lookahead=fetched_ahead(workers) + ASSIGNED_AHEAD,
            passes=engine.passes,
            shards_weights=engine.shards_weights,
        )
        total_steps = plan.training.total_steps(schedule.steps_per_epoch)
        steps = ScheduledSteps(schedule, planner, rank_speed, replica=session.replica, total_steps=total_steps)
        return cls(examples, partial(task.collate, prepared.artifacts), steps, session.device, workers)

    @property
    def length(self) -> TrainingLength:
        return TrainingLength(self.steps.total_steps, self.steps.schedule.steps_per_epoch)

    @property
    def rank_speed(self) -> RankSpeedEstimator:
        return self.steps.rank_speed

    @property
    def facts(self) -> dict[str, Any]:
        packs = self.steps.schedule.packs_in_words()
        return {"step": packs} if packs else {}

    def open(self, from_step: int, notify: Callable[[str], None]) -> Prefetcher[tuple[RankStep, list[Batch]]]:
        """The batches, fetched ahead of time, by `workers` processes."""
        batches = iterate_batches(
            self.examples,
            self.collate,
            self.steps.steps(from_step),
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
            tell=notify,
        )
        return Prefetcher(batches, self.device)
