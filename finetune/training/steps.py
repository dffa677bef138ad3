"""Which examples a rank computes, step after step: the schedule says what a step trains on, the planner who computes it."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.data.order.loader import RankStep
from finetune.data.order.schedule import Schedule
from finetune.training.microbatch_planner import MicroBatchPlanner, flat
from finetune.training.rank_speed import RankSpeedEstimator

ASSIGNED_AHEAD = 1  # steps


class ScheduledSteps:
    """This rank's part of every step. The ranks of a replica get the same."""

    def __init__(
        self,
        schedule: Schedule,
        planner: MicroBatchPlanner,
        rank_speed: RankSpeedEstimator,
        *,
        replica: int,
        total_steps: int,
    ) -> None:
        self.schedule, self.planner, self.rank_speed = schedule, planner, rank_speed
        self.replica, self.total_steps = replica, total_steps

    def steps(self, from_step: int) -> Iterator[RankStep]:
        """From step `from_step` (from 0) on. Where ranks need not run equally many micro-batches, a rank leaves its dummies
        out, but for one if it has nothing else.
        """
        for index in range(from_step, self.total_steps):
            step = self.schedule.step(index)
            speeds, overhead = self.rank_speed.at(index), self.rank_speed.overhead
            assignment = self.planner.assign(step, speeds, overhead=overhead)
            examples = flat(step)
            own = tuple(tuple(examples[position] for position in micro) for micro in assignment.ranks[self.replica])
            if not self.planner.lockstep:
                own = tuple(micro for micro in own if micro) or ((),)
            yield RankStep(
                index,
                step.epoch,
                own,
                self.planner.cheapest(examples),
                float(assignment.loads[self.replica]),
                assignment.imbalance,
            )
