"""Which examples make up global step k: a pure function of (seed, epoch, k), whatever the machine.

Neither the number of ranks nor the micro-batch nor accumulation appears in this file. Dealing a step's items to ranks
is a second function, in dealing.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from finetune.data.order.packing import Packing, Packs, pack
from finetune.data.order.rng import Purpose, draw, permute
from finetune.errors import UserError

PACKED_WINDOWS = (1, 4, 16, 64)  # steps: wide enough for packs of one group to cost the same, short against an epoch
ROUNDING = 0.01  # a number of packs may hold so much more or less than the global batch, on average
IDLE = 0.02  # share of time that ranks may wait for each other before a wider window is taken


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0..num_examples-1 (int64), a pure function of its arguments."""
    return permute(num_examples, seed=seed, epoch=epoch, purpose=Purpose.ORDER)


@dataclass(frozen=True)
class Step:
    """One global step. items: tuples of example indices, one example each, or the segments of one pack."""

    index: int  # over all epochs, from 0
    epoch: int
    index_in_epoch: int
    items: tuple[tuple[int, ...], ...]
    costs: np.ndarray  # [items]


@dataclass(frozen=True)
class _Epoch:
    """What one epoch trains on."""

    packs: Packs | None  # None: items are single examples
    costs: np.ndarray  # [items]
    order: np.ndarray  # int64 [items]


class Schedule:
    """All steps of a run. Each example exactly once an epoch; only the last step of an epoch may be smaller.

    costs: work of each example, any unit (float or int [n]), from lengths and the model's shape. Never from measured
    times: the machine would then decide what a step trains on (dealing may use them).
    global_batch: examples a step. Packs are spread over as many steps as single examples would make, one more in some
    steps than in others: the number of steps is part of what a recipe asks for. Where a multiple of 8 packs holds so many
    examples on average, within ROUNDING, every step has that many: most numbers of ranks share them evenly.
    window: so many steps choose their items together by similar cost and are then shuffled, so that any number of ranks
    finds equal shares and padding is cut. 0 or 1: purely random. Default: random for single examples; for packs as
    short as evens them out.
    Raises UserError where there is no example, or one that the packing cannot hold.
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
            raise UserError("there is no example to train on", remedy="Check the data's path, limit and skipped rows.")
        if packing is not None and len(packing.lengths) != num_examples:
            raise ValueError(f"{len(packing.lengths)} lengths for {num_examples} costs")
        packs, item_costs = self._items(0)
        self.num_items = len(item_costs)  # the same in every epoch
        wanted = global_batch * self.num_items / num_examples
        self.items_per_step = max(1, round(wanted))
        self.steps_per_epoch = -(-self.num_items // self.items_per_step)
        even = self.items_per_step % 8 == 0 and abs(self.items_per_step / wanted - 1) <= ROUNDING
        self.spread = packing is not None and not even
        if self.spread:
            self.steps_per_epoch = min(self.num_items, -(-num_examples // global_batch))
        self.group = self.items_per_step
        if packing is not None and self.items_per_step % 8 == 0:
            self.group = math.gcd(self.items_per_step, 16)
        if window is None:
            window = 1 if packing is None else self._enough_window(item_costs)
        self.window = window
        order = self._order(0, item_costs, window)
        self._planned = (0, _Epoch(packs, item_costs, order))  # kept; any other epoch can be planned anew

    def step(self, index: int) -> Step:
        """Global step `index`, counted from 0 over all epochs."""
        epoch, index_in_epoch = divmod(index, self.steps_per_epoch)
        if self._planned[0] != epoch:
            packs, item_costs = self._items(epoch)
            self._planned = (epoch, _Epoch(packs, item_costs, self._order(epoch, item_costs, self.window)))
        plan = self._planned[1]
        chosen = plan.order[self._border(index_in_epoch) : self._border(index_in_epoch + 1)]
        if plan.packs is None:
            items = tuple((example,) for example in chosen.tolist())
        else:
            items = tuple(tuple(plan.packs[item].tolist()) for item in chosen)
        return Step(index, epoch, index_in_epoch, items, plan.costs[chosen])

    def _border(self, index_in_epoch: int) -> int:
        """The first item of a step of an epoch."""
        if self.spread:
            return index_in_epoch * self.num_items // self.steps_per_epoch
        return index_in_epoch * self.items_per_step

    def _items(self, epoch: int) -> tuple[Packs | None, np.ndarray]:
        """The packs of an epoch (None: single examples) and the cost of each item."""
        if self.packing is None:
            return None, self.costs
        packs = pack(self.packing.lengths, self.packing.capacity, seed=self.seed, epoch=epoch)
        return packs, packs.sums(self.costs)

    def _order(self, epoch: int, costs: np.ndarray, window: int) -> np.ndarray:
        """The order of items: random, or with a window random among steps that are made of groups of like cost.

        A window's groups, sorted by cost, are cut into as many strata as a step has groups; each step draws one group
        from every stratum: dear and cheap items are in all steps. One group a step suits padded examples. Packs come
        in groups of 8 or 16, which 2, 4, 8 and 16 ranks share evenly. Windows are random subsets of the epoch, so every
        stretch of training sees the same mixture. The incomplete last step is a random rest.
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
        borders = np.arange(num_windows + 1) * num_steps // num_windows  # equally long windows, in steps
        for first, last in itertools.pairwise(borders.tolist()):
            here = slice(first * self.items_per_step, last * self.items_per_step)
            by_cost = order[here][np.argsort(costs[order[here]], kind="stable")]
            strata = by_cost.reshape(num_groups, last - first, self.group)
            shuffle = np.argsort(rng[first * num_groups : last * num_groups].reshape(num_groups, -1), axis=1)
            order[here] = np.take_along_axis(strata, shuffle[:, :, None], axis=1).swapaxes(0, 1).ravel()
        return order

    def _enough_window(self, costs: np.ndarray) -> int:
        """The shortest window that evens packs out: the nearer to a purely random order, the better.

        Even: as many ranks as a group has packs, meeting after every pack, would idle less than IDLE of the time.
        """
        num_steps = len(costs) // self.items_per_step
        for window in PACKED_WINDOWS:
            order = self._order(0, costs, window)[: num_steps * self.items_per_step]
            by_step = np.sort(costs[order].reshape(num_steps, self.items_per_step), axis=1)
            groups = by_step.reshape(-1, self.group)
            if groups.sum() >= (1 - IDLE) * self.group * groups.max(axis=1).sum():
                break
        return window
