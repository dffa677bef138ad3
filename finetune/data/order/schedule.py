"""Which examples make up global step k: a pure function of (seed, epoch, k), independent of the machine.

The number of ranks, the micro-batch size and gradient accumulation do not appear in this file. Assigning the items of a
step to ranks is a separate function, in assignment.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from finetune.data.order.packing import Packing, Packs, pack
from finetune.data.order.rng import Purpose, draw, permute
from finetune.errors import UserError

PACKED_WINDOWS = (1, 4, 16, 64)  # candidate windows for packs, in steps
ROUNDING = 0.01  # allowed relative deviation of the average examples per step from the global batch
MAX_IDLE = 0.02  # fraction of the time that ranks may wait for each other before a longer window is chosen


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of the examples in an epoch: a permutation of 0..num_examples-1, int64. A pure function."""
    return permute(num_examples, seed=seed, epoch=epoch, purpose=Purpose.ORDER)


@dataclass(frozen=True)
class Step:
    """One optimizer step. items: tuples of example indices, each a single example or the examples of one pack."""

    index: int  # over all epochs, from 0
    epoch: int
    items: tuple[tuple[int, ...], ...]
    costs: np.ndarray  # [items]


@dataclass(frozen=True)
class _Epoch:
    """The items of one epoch and their order."""

    packs: Packs | None  # None: items are single examples
    costs: np.ndarray  # [items]
    order: np.ndarray  # int64 [items]


class Schedule:
    """All steps of a run. Each example occurs exactly once per epoch; only the last step of an epoch may be smaller.

    costs: cost of each example in any unit, float or int [n], computed from lengths and the shape of the model. Never
    from measured times: the machine would then decide what a step trains on. (Assignment to ranks may use them.)
    global_batch: examples per optimizer step. Packs are distributed over as many steps as single examples would need,
    so that the number of steps does not depend on packing; some steps have one pack more than others. If a multiple of
    8 packs holds `global_batch` examples on average, within ROUNDING, every step has exactly that many packs, because
    most numbers of ranks divide it.
    window: number of consecutive steps whose items are regrouped by similar cost, in random order of the steps, so that
    any number of ranks can share a step evenly and less padding is needed. 0 or 1: purely random order. None: random
    order for single examples; for packs, the shortest window that balances them.
    packing: pack examples by these lengths; None: every item is a single example.
    Raises: UserError if there are no examples, or one that does not fit into a pack.
    """

    def __init__(
        self,
        costs: np.ndarray,
        *,
        seed: int,
        global_batch: int,
        window: int | None = None,
        packing: Packing | None = None,
    ) -> None:
        self.costs, self.seed, self.packing = np.asarray(costs), seed, packing
        num_examples = len(self.costs)
        if not num_examples:
            raise UserError(
                "there are no examples to train on",
                remedy="Check the data's path and limit, and which rows were skipped.",
            )
        if packing is not None and len(packing.lengths) != num_examples:
            raise ValueError(f"{len(packing.lengths)} lengths for {num_examples} costs")
        packs, item_costs = self._items(0)
        self.num_items = len(item_costs)  # the same in every epoch
        average_items = global_batch * self.num_items / num_examples
        self.items_per_step = max(1, round(average_items))
        self.steps_per_epoch = -(-self.num_items // self.items_per_step)
        divisible = self.items_per_step % 8 == 0 and abs(self.items_per_step / average_items - 1) <= ROUNDING
        self.spread = packing is not None and not divisible
        if self.spread:
            self.steps_per_epoch = min(self.num_items, -(-num_examples // global_batch))
        self.group = self.items_per_step
        if packing is not None and self.items_per_step % 8 == 0:
            self.group = math.gcd(self.items_per_step, 16)
        if window is None:
            window = 1 if packing is None else self._shortest_window(item_costs)
        self.window = window
        order = self._order(0, item_costs, window)
        self._planned = (0, _Epoch(packs, item_costs, order))  # cached; any epoch can be planned again

    def step(self, index: int) -> Step:
        """Global step `index`, counted from 0 over all epochs."""
        epoch, index_in_epoch = divmod(index, self.steps_per_epoch)
        if self._planned[0] != epoch:
            packs, item_costs = self._items(epoch)
            self._planned = (epoch, _Epoch(packs, item_costs, self._order(epoch, item_costs, self.window)))
        plan = self._planned[1]
        chosen = plan.order[self._first_item(index_in_epoch) : self._first_item(index_in_epoch + 1)]
        if plan.packs is None:
            items = tuple((example,) for example in chosen.tolist())
        else:
            items = tuple(tuple(plan.packs[item].tolist()) for item in chosen)
        return Step(index, epoch, items, plan.costs[chosen])

    def packs_in_words(self) -> str:
        """What a step holds, as a mean over an epoch: "3.9 packs of 1,024 tokens (97% full)"; "" without packs."""
        if self.packing is None:
            return ""
        capacity, count = self.packing.capacity, self.num_items / self.steps_per_epoch
        full = int(self.packing.lengths.sum()) / (self.num_items * capacity)
        return f"{count:.1f} packs of {capacity:,} tokens ({full:.0%} full)"

    def _first_item(self, index_in_epoch: int) -> int:
        """Index of the first item of a step in the order of its epoch."""
        if self.spread:
            return index_in_epoch * self.num_items // self.steps_per_epoch
        return index_in_epoch * self.items_per_step

    def _items(self, epoch: int) -> tuple[Packs | None, np.ndarray]:
        """(packs of an epoch, or None for single examples; cost of each item)."""
        if self.packing is None:
            return None, self.costs
        packs = pack(self.packing.lengths, self.packing.capacity, seed=self.seed, epoch=epoch)
        return packs, packs.sums(self.costs)

    def _order(self, epoch: int, costs: np.ndarray, window: int) -> np.ndarray:
        """The order of the items of an epoch: random, or stratified by cost within windows of `window` steps.

        Windows are random subsets of the epoch, so every part of the training sees the same distribution. The items of
        a window are sorted by cost and divided into groups, and the groups into as many strata as a step has groups;
        each step draws one group from every stratum. Single examples form one group per step, so that the examples of a
        step have similar lengths. Packs are grouped by 8 or 16, which 2, 4, 8 and 16 ranks share evenly, and every step
        has costly and cheap groups. The items of an incomplete last step stay random.
        """
        if self.packing is None:
            order = epoch_order(len(costs), seed=self.seed, epoch=epoch)
        else:
            order = permute(len(costs), seed=self.seed, epoch=epoch, purpose=Purpose.PACKS)
        if window <= 1:
            return order
        num_steps, num_groups = len(order) // self.items_per_step, self.items_per_step // self.group
        rng = draw(num_steps * num_groups, seed=self.seed, epoch=epoch, purpose=Purpose.WINDOWS)
        num_windows = max(1, round(num_steps / window))
        borders = np.arange(num_windows + 1) * num_steps // num_windows  # windows of equal length, in steps
        for first, last in itertools.pairwise(borders.tolist()):
            window_items = slice(first * self.items_per_step, last * self.items_per_step)
            by_cost = order[window_items][np.argsort(costs[order[window_items]], kind="stable")]
            strata = by_cost.reshape(num_groups, last - first, self.group)
            shuffle = np.argsort(rng[first * num_groups : last * num_groups].reshape(num_groups, -1), axis=1)
            order[window_items] = np.take_along_axis(strata, shuffle[:, :, None], axis=1).swapaxes(0, 1).ravel()
        return order

    def _shortest_window(self, costs: np.ndarray) -> int:
        """The shortest window that balances packs, because a short one stays closest to a purely random order.

        Balanced: as many ranks as a group has packs, synchronized after each pack, idle for less than MAX_IDLE.
        """
        num_steps = len(costs) // self.items_per_step
        for window in PACKED_WINDOWS:
            order = self._order(0, costs, window)[: num_steps * self.items_per_step]
            by_step = np.sort(costs[order].reshape(num_steps, self.items_per_step), axis=1)
            groups = by_step.reshape(-1, self.group)
            if groups.sum() >= (1 - MAX_IDLE) * self.group * groups.max(axis=1).sum():
                break
        return window
