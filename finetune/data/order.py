"""Which examples make up global step k: a pure function of (seed, epoch, k), whatever the machine.

Neither the number of ranks nor the micro-batch nor accumulation appears in this file. Dealing a step's items to ranks
is a second function, in dealing.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetune.data.chance import Purpose, draw, permute
from finetune.data.packing import Packing, Packs, pack
from finetune.errors import UserError

PACKED_WINDOW = 64  # steps: wide enough for the packs of one step to cost the same, short against an epoch


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
    """What one epoch trains on: its packs (None: single examples) and the order of its items."""

    packs: Packs | None
    order: np.ndarray  # int64 [items]
    costs: np.ndarray  # [items]


class Schedule:
    """All steps of a run. Each example exactly once an epoch; only the last step of an epoch may be smaller.

    costs: work of each example, any unit (float or int [n]), from lengths and the model's shape. Never from measured
    times: the machine would then decide what a step trains on (dealing may use them).
    global_batch: examples a step. Packed, a step is a fixed number of packs that hold so many examples on average:
    round(global_batch / mean examples a pack), at least 1.
    window: so many steps choose their items together by similar cost and are then shuffled, so that any number of ranks
    finds equal shares and padding is cut. 0 or 1: purely random. Default: random for single examples, 64 for packs.
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
        self.num_examples = len(self.costs)
        if not self.num_examples:
            raise UserError("there is no example to train on", remedy="Check the data's path, limit and skipped rows.")
        if packing is not None and len(packing.lengths) != self.num_examples:
            raise ValueError(f"{len(packing.lengths)} lengths for {self.num_examples} costs")
        if window is None:
            window = 1 if packing is None else PACKED_WINDOW
        self.window = window
        packs = self._pack(0)
        self.num_items = self.num_examples if packs is None else len(packs)  # the same in every epoch
        self.items_per_step = max(1, round(global_batch * self.num_items / self.num_examples))
        self.steps_per_epoch = -(-self.num_items // self.items_per_step)
        self._planned: tuple[int, _Epoch] = (0, self._plan(0, packs))  # kept; any other epoch can be planned anew

    def step(self, index: int) -> Step:
        """Global step `index`, counted from 0 over all epochs."""
        epoch, index_in_epoch = divmod(index, self.steps_per_epoch)
        if self._planned[0] != epoch:
            self._planned = (epoch, self._plan(epoch, self._pack(epoch)))
        plan = self._planned[1]
        start = index_in_epoch * self.items_per_step
        chosen = plan.order[start : start + self.items_per_step]
        if plan.packs is None:
            items = tuple((example,) for example in chosen.tolist())
        else:
            items = tuple(tuple(plan.packs[item].tolist()) for item in chosen)
        return Step(index, epoch, index_in_epoch, items, plan.costs[chosen])

    def _pack(self, epoch: int) -> Packs | None:
        if self.packing is None:
            return None
        return pack(self.packing.lengths, self.packing.capacity, seed=self.seed, epoch=epoch)

    def _plan(self, epoch: int, packs: Packs | None) -> _Epoch:
        if packs is None:
            order, costs, group = epoch_order(self.num_examples, seed=self.seed, epoch=epoch), self.costs, 0
        else:
            order = permute(len(packs), seed=self.seed, epoch=epoch, purpose=Purpose.PACKS)
            costs, group = packs.sums(self.costs), 0 if self.items_per_step % 8 else math.gcd(self.items_per_step, 16)
        if self.window > 1:
            order = self._gather(order, costs, epoch, group or self.items_per_step)
        return _Epoch(packs, order, costs)

    def _gather(self, order: np.ndarray, costs: np.ndarray, epoch: int, group: int) -> np.ndarray:
        """Reorder items so that each step is made of groups of like cost, chosen within a window and then shuffled.

        group: items of like cost, a divisor of items_per_step. A whole step of one cost suits padded examples. Packs
        come in groups of 8 or 16, which 2, 4, 8 and 16 ranks share evenly, while a step still mixes several groups.
        Windows are equally long, and random subsets of the epoch, so every stretch of training sees the same mixture.
        The incomplete last step is a random rest.
        """
        num_steps = len(order) // self.items_per_step
        body, rest = np.split(order, [num_steps * self.items_per_step])
        num_windows = max(1, round(num_steps / self.window))
        window_of_step = np.arange(num_steps) * num_windows // max(num_steps, 1)
        by_cost = body[np.lexsort((costs[body], np.repeat(window_of_step, self.items_per_step)))]
        window_of_group = np.repeat(window_of_step, self.items_per_step // group)
        chance = draw(len(window_of_group), seed=self.seed, epoch=epoch, purpose=Purpose.WINDOWS)
        groups = by_cost.reshape(-1, group)[np.lexsort((chance, window_of_group))]
        return np.concatenate((groups.ravel(), rest))
