"""Who computes what of a step, so that no rank waits for another. What the step trains on is the schedule's business."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from finetune.data.cost import CostModel
from finetune.data.dealing import Deal, deal, deal_evaluation, deal_packs, deal_segments
from finetune.data.order import Schedule, Step
from finetune.data.packing import Packing
from finetune.distributed.session import Session
from finetune.recipe.recipe import Recipe
from finetune.tasks.task import Kit


class Shares:
    """Deals examples to ranks by cost: padded micro-batches, padding-free ones, or packs. The same on every rank."""

    def __init__(self, kit: Kit, cost: CostModel, *, ranks: int, micro_batch: int) -> None:
        self.kit, self.cost, self.ranks, self.micro_batch = kit, cost, ranks, micro_batch
        self._lengths = np.asarray(kit.examples["train"].costs, dtype=np.int64)
        self._costs = cost.of(self._lengths)

    def schedule(self, recipe: Recipe, default_window: int) -> Schedule:
        """The order of the training examples: a pure function of the recipe and their lengths."""
        packed, asked = self.kit.packing == "packed", recipe.data.balance_window
        window: int | None = default_window if self.kit.packing == "none" else None
        if asked != "auto":
            window = asked
        return Schedule(
            self._costs,
            seed=recipe.seed,
            global_batch=recipe.training.global_batch,
            window=window,
            packing=Packing(self._lengths, self.kit.capacity) if packed else None,
        )

    def deal(self, step: Step, speed: Sequence[float] | None) -> Deal:
        """Micro-batches of each rank, as positions in `flat(step)`."""
        examples = flat(step)
        costs, lengths, capacity = self._costs[examples], self._lengths[examples], self.kit.capacity
        if self.kit.packing == "none":
            return deal(costs, self.ranks, micro_batch=self.micro_batch, speed=speed)
        if self.kit.packing == "padding_free":
            return deal_segments(costs, lengths, self.ranks, capacity=capacity, speed=speed)
        sizes = [len(item) for item in step.items]
        return deal_packs(sizes, costs, lengths, self.ranks, capacity=capacity, speed=speed)

    def cheapest(self, examples: list[int]) -> int:
        """The one that a ghost runs."""
        return examples[int(np.argmin(self._costs[examples]))]

    def deal_split(self, split: str) -> Deal:
        """A whole split for evaluation: every example exactly once."""
        lengths = np.asarray(self.kit.examples[split].costs, dtype=np.int64)
        if self.kit.packing == "none":
            return deal_evaluation(self.cost.of(lengths), self.ranks, self.micro_batch)
        capacity = max(self.kit.capacity, int(lengths.max(initial=1)))
        return deal_evaluation(self.cost.of(lengths), self.ranks, max(1, capacity // int(lengths.max(initial=1))))


def flat(step: Step) -> list[int]:
    """The examples of a step, pack after pack."""
    return [example for item in step.items for example in item]


class Pace:
    """Relative speeds of the ranks: equal, as the recipe says, or measured over the first steps.

    Measured means: cost computed in a second of forward pass (ZeRO-3, whose forward pass waits for peers: of a fixed
    product of matrices). Speeds change who computes an example, so sums are rounded in another order; nothing else.
    """

    WARM, MEASURED = 2, 8

    def __init__(self, asked: str | Sequence[float], session: Session, *, lookahead: int) -> None:
        self.session, self.lookahead = session, lookahead
        self.speeds: list[float] | None = None if isinstance(asked, str) else list(asked)
        self.effective_from = 0
        self.measuring = asked == "auto" and session.replicas > 1
        self._seen = 0
        self._work = self._seconds = 0.0

    def at(self, step: int) -> list[float] | None:
        """Speeds for step `step`; None: equal."""
        return self.speeds if step >= self.effective_from else None

    def note(self, step: int, cost: float, forward_seconds: float) -> bool:
        """After each step, on all ranks alike; True on the step after which speeds are known."""
        if not self.measuring:
            return False
        self._seen += 1
        if self._seen > self.WARM:
            work, seconds = (cost, forward_seconds) if not self.session.shards_weights else _probe()
            self._work, self._seconds = self._work + work, self._seconds + seconds
        if self._seen < self.WARM + self.MEASURED:
            return False
        self.measuring = False
        rates = self.session.all_gather(self._work / max(self._seconds, 1e-9))
        split = self.session.split
        rates = [min(rates[first : first + split]) for first in range(0, len(rates), split)]  # one a replica
        self.speeds = [round(rate / max(rates), 3) or 1e-3 for rate in rates]
        self.effective_from = step + 1 + self.lookahead
        return True


def _probe(size: int = 384) -> tuple[float, float]:
    """(work, seconds) of a fixed product of matrices on this rank."""
    matrix = torch.ones(size, size)
    began = time.perf_counter()
    for _ in range(8):
        matrix = torch.mm(matrix, matrix) / size
    return 8.0, time.perf_counter() - began
