"""This rank's micro-batches, step after step, collated ahead of time where the recipe asks for workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from finetune.data.order.assignment import Assignment, MicroBatch
from finetune.data.order.schedule import Schedule
from finetune.data.table import Examples
from finetune.distributed.stopwatch import Stopwatch
from finetune.tasks.task import Batch
from finetune.training.microbatch_planner import MicroBatchPlanner, RankSpeedEstimator, flat

PREFETCHED = 4  # batches a loader process
ASSIGNED_AHEAD = 1  # steps

Collate = Callable[[Sequence[dict[str, Any]]], Batch]


class _Positions(Dataset):
    """Examples looked up by (position, epoch), so that augmentation in a worker knows the epoch."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        position, epoch = place
        if getattr(self.examples, "epoch", epoch) != epoch:
            self.examples.epoch = epoch  # type: ignore[attr-defined]
        return self.examples[position]


@dataclass(frozen=True)
class RankStep:
    """What this rank computes in one step: micro-batches as positions of examples; () is a ghost.

    stand_in: the example that a ghost runs, so that collectives stay aligned. cost: of this rank's examples; imbalance:
    time of the busiest rank over that of an even share.
    """

    index: int
    epoch: int
    micro_batches: tuple[MicroBatch, ...]
    dummy_source: int
    cost: float
    imbalance: float


def training_steps(
    schedule: Schedule, planner: MicroBatchPlanner, rank_speed: RankSpeedEstimator, rank: int, steps: range
) -> Iterator[RankStep]:
    """The schedule says what a step trains on, the shares who computes it.

    Where ranks need not run equally many micro-batches, a rank leaves its ghosts out, but for one if it has nothing else.
    """
    for index in steps:
        step = schedule.step(index)
        assignment = planner.assign(step, rank_speed.at(index), overhead=rank_speed.overhead)
        examples = flat(step)
        own = tuple(tuple(examples[position] for position in micro) for micro in assignment.ranks[rank])
        if not planner.lockstep:
            own = tuple(micro for micro in own if micro) or ((),)
        yield RankStep(
            index, step.epoch, own, planner.cheapest(examples), float(assignment.loads[rank]), assignment.imbalance
        )


def evaluation_steps(assignment: Assignment, rank: int) -> Iterator[RankStep]:
    """One pass over a split, a micro-batch at a time."""
    for index, micro in enumerate(assignment.ranks[rank]):
        yield RankStep(index, 0, (micro,), 0, 0.0, 1.0)


def iterate_batches(
    examples: Examples, collate: Collate, steps: Iterable[RankStep], *, workers: int = 0, pin_memory: bool = False
) -> Iterator[tuple[RankStep, list[Batch]]]:
    """Each step with its batches, ghosts marked. No more steps are looked at than the loader fetches ahead."""
    plan = _Plan(steps)
    loader = DataLoader(
        _Positions(examples),
        batch_sampler=plan,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCHED if workers else None,
    )
    batches = iter(loader)
    for batch in batches:
        step = plan.taken()
        own = [batch, *(next(batches) for _ in step.micro_batches[1:])]
        for one, micro in zip(own, step.micro_batches, strict=True):
            one.dummy = not micro
        yield step, own


class Prefetcher:
    """The next step's batches, dealt and collated while the device still works on what it was given."""

    def __init__(self, steps: Iterator[tuple[RankStep, list[Batch]]], device: torch.device) -> None:
        self._steps = steps
        self._waiting = Stopwatch(device)
        self._fetched: list[tuple[RankStep, list[Batch]] | Exception] = []

    def fetch(self) -> None:
        """Fetch a step, unless one is here. What goes wrong is raised when the step is taken."""
        if self._fetched:
            return
        with self._waiting.running():
            try:
                self._fetched.append(next(self._steps))
            except Exception as error:
                self._fetched.append(error)

    def take(self) -> tuple[RankStep, list[Batch]]:
        """The step fetched last, or else the next one. Raises: what fetching it raised, StopIteration after the last."""
        self.fetch()
        fetched = self._fetched.pop()
        if isinstance(fetched, Exception):
            raise fetched
        return fetched

    def waited(self) -> float:
        """Seconds since the last call in which the device waited for data: on a GPU those in which it had run dry."""
        seconds, self._waiting = self._waiting.read(), Stopwatch(self._waiting.device)
        return seconds


class _Plan:
    """Positions for the loader, and beside it a queue of the steps that they belong to."""

    def __init__(self, steps: Iterable[RankStep]) -> None:
        self._steps = steps
        self._queue: deque[RankStep] = deque()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            self._queue.append(step)
            for micro in step.micro_batches:
                yield [(position, step.epoch) for position in micro or (step.dummy_source,)]

    def taken(self) -> RankStep:
        """The step whose first batch was just handed out."""
        return self._queue.popleft()
