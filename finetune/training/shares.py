"""Who computes what of a step, so that no rank waits for another. What the step trains on is the schedule's business."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from finetune.data.cost import CostModel
from finetune.data.dealing import Deal, deal, deal_evaluation, deal_packs, deal_segments, shares_of
from finetune.data.order import Schedule, Step
from finetune.data.packing import Packing
from finetune.distributed.session import Session
from finetune.distributed.stopwatch import Stopwatch
from finetune.recipe.recipe import Recipe
from finetune.tasks.task import Kit
from finetune.training.step import StepResult


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

    def deal(self, step: Step, speed: Sequence[float] | None, *, overhead: float = 0.0) -> Deal:
        """Micro-batches of each rank, as positions in `flat(step)`. overhead: cost of a step on each rank besides."""
        examples = flat(step)
        costs, lengths, capacity = self._costs[examples], self._lengths[examples], self.kit.capacity
        if speed is not None and overhead:
            speed = shares_of(speed, float(costs.sum()), overhead)
        if self.kit.packing == "none":
            return deal(costs, self.ranks, micro_batch=self.micro_batch, speed=speed)
        if self.kit.packing == "padding_free":
            return deal_segments(costs, lengths, self.ranks, capacity=capacity, speed=speed)
        sizes = [len(item) for item in step.items]
        return deal_packs(sizes, costs, lengths, self.ranks, capacity=capacity, speed=speed)

    def cheapest(self, examples: list[int]) -> int:
        """The one that a ghost runs."""
        return examples[int(np.argmin(self._costs[examples]))]

    def deal_split(self, split: str, speed: Sequence[float] | None = None) -> Deal:
        """A whole split for evaluation: every example exactly once."""
        lengths = np.asarray(self.kit.examples[split].costs, dtype=np.int64)
        if self.kit.packing == "none":
            return deal_evaluation(self.cost.of(lengths), self.ranks, self.micro_batch, speed=speed)
        capacity = max(self.kit.capacity, int(lengths.max(initial=1)))
        micro_batch = max(1, capacity // int(lengths.max(initial=1)))
        return deal_evaluation(self.cost.of(lengths), self.ranks, micro_batch, speed=speed)


def flat(step: Step) -> list[int]:
    """The examples of a step, pack after pack."""
    return [example for item in step.items for example in item]


class Pace:
    """Relative speeds of the ranks: equal, as the recipe says, or measured over the first steps.

    Measured are the cost computed in a second of forward pass (ZeRO-3, whose forward pass waits for peers: a fixed product
    of matrices), and what a step costs each rank whatever its share: the update, in the cost that could have been
    computed meanwhile. Speeds change who computes an example, so sums are rounded in another order; nothing else.
    """

    WARM, MEASURED = 2, 8
    WHOLE = 3.0  # forward and backward pass together, over the forward pass alone

    def __init__(self, asked: str | Sequence[float], session: Session, *, lookahead: int) -> None:
        self.session, self.lookahead = session, lookahead
        self.speeds: list[float] | None = None if isinstance(asked, str) else list(asked)
        self.overhead = 0.0  # cost
        self.effective_from = 0
        self.measuring = asked == "auto" and session.replicas > 1
        self._seen = 0
        self._work = self._seconds = self._update = 0.0

    def at(self, step: int) -> list[float] | None:
        """Speeds for step `step`; None: equal."""
        return self.speeds if step >= self.effective_from else None

    def note(self, step: int, cost: float, result: StepResult) -> bool:
        """After each step, on all ranks alike; True on the step after which speeds are known."""
        if not self.measuring:
            return False
        self._seen += 1
        if self._seen > self.WARM:
            work, seconds = cost, result.forward_pass.read()
            if self.session.shards_weights:
                work, seconds = _probe(self.session.device)
            self._work, self._seconds = self._work + work, self._seconds + seconds
            self._update += result.update.read()
        if self._seen < self.WARM + self.MEASURED:
            return False
        self._conclude()
        self.effective_from = step + 1 + self.lookahead
        return True

    def _conclude(self) -> None:
        self.measuring = False
        rate, split = self._work / max(self._seconds, 1e-9), self.session.split
        ranks = self.session.all_gather((rate, rate / self.WHOLE * self._update / self.MEASURED))
        rates = [min(ranks[first : first + split])[0] for first in range(0, len(ranks), split)]  # one a replica
        self.speeds = [round(rate / max(rates), 3) or 1e-3 for rate in rates]
        if not self.session.shards_weights:
            self.overhead = min(overhead for _, overhead in ranks)  # an update may wait for peers: where it waits least

    def describe(self) -> str:
        """What was measured, for people."""
        return f"ranks measured: relative speeds {self.speeds}"


def _probe(device: torch.device, size: int = 384) -> tuple[float, float]:
    """(work, seconds) of a fixed product of matrices on this rank's device."""
    matrix, watch = torch.ones(size, size, device=device), Stopwatch(device)
    with watch.running():
        for _ in range(8):
            matrix = torch.mm(matrix, matrix) / size
    return 8.0, watch.read()
