"""This rank's micro-batches, step after step, collated ahead of time where the recipe asks for workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from finetune.data.dealing import MicroBatch, deal, deal_evaluation
from finetune.data.order import Schedule
from finetune.data.table import Examples
from finetune.distributed.session import Session
from finetune.tasks.task import Batch

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

    stand_in: the example that a ghost runs, so that collectives stay aligned.
    """

    epoch: int
    micro_batches: tuple[MicroBatch, ...]
    stand_in: int


def training_steps(schedule: Schedule, session: Session, *, micro_batch: int, steps: range) -> Iterator[RankStep]:
    """The schedule says what a step trains on, the dealing who computes it; both are pure functions."""
    for index in steps:
        step = schedule.step(index)
        dealt = deal(step.costs, session.world_size, micro_batch=micro_batch).ranks[session.rank]
        own = tuple(tuple(example for item in micro for example in step.items[item]) for micro in dealt)
        yield RankStep(step.epoch, own, step.items[0][0])


def evaluation_steps(costs: Sequence[int], session: Session, *, micro_batch: int) -> Iterator[RankStep]:
    """One pass over a split, a micro-batch at a time."""
    for micro in deal_evaluation(costs, session.world_size, micro_batch).ranks[session.rank]:
        yield RankStep(0, (micro,), 0)


def feed(
    examples: Examples, collate: Collate, steps: Iterable[RankStep], *, workers: int = 0, pin_memory: bool = False
) -> Iterator[list[Batch]]:
    """The batches of each step, ghosts marked. No more steps are looked at than the loader fetches ahead."""
    plan = _Plan(steps)
    loader = DataLoader(
        _Positions(examples),
        batch_sampler=plan,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )
    batches = iter(loader)
    for batch in batches:
        ghosts = plan.taken()
        step = [batch, *(next(batches) for _ in ghosts[1:])]
        for one, ghost in zip(step, ghosts, strict=True):
            one.ghost = ghost
        yield step


class _Plan:
    """Positions for the loader, and beside it a queue that says which batches form a step and which are ghosts."""

    def __init__(self, steps: Iterable[RankStep]) -> None:
        self._steps = steps
        self._queue: deque[list[bool]] = deque()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            self._queue.append([not micro for micro in step.micro_batches])
            for micro in step.micro_batches:
                yield [(position, step.epoch) for position in micro or (step.stand_in,)]

    def taken(self) -> list[bool]:
        """The ghost flags of the step whose first batch was just handed out."""
        return self._queue.popleft()
