"""Load balancing: assigns the items of a step to micro-batches of ranks, so that all ranks finish at the same time.

Which items a step trains on is decided by the schedule, not here. Every function is pure: the same arguments give the
same assignment on every rank, without communication. All ranks get the same number of micro-batches, because each
micro-batch runs collectives; a rank with less work gets dummy micro-batches, written as (). The micro-batches of a rank
are sorted by descending cost, so that ranks are also synchronized within a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.errors import UserError

MicroBatch = tuple[int, ...]  # indices of items; () is a dummy micro-batch
UNIFORM_TOLERANCE = 1.01  # equal micro-batches are preferred unless they make the step longer by this factor


@dataclass(frozen=True)
class Assignment:
    """ranks[r][m]: micro-batch m of rank r. All ranks have the same number of micro-batches, at least one."""

    ranks: tuple[tuple[MicroBatch, ...], ...]
    loads: np.ndarray  # float64 [ranks]: total cost of a rank, padding included
    speed: np.ndarray  # float64 [ranks]: relative to the fastest rank, which has 1.0

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches per rank, dummies included."""
        return len(self.ranks[0])

    @property
    def imbalance(self) -> float:
        """Time of the last rank divided by the time with perfectly balanced loads; 1.0 is optimal."""
        total = self.loads.sum()
        return float((self.loads / self.speed).max() * self.speed.sum() / total) if total > 0 else 1.0


def assign(
    costs: np.ndarray | Sequence[float],
    ranks: int,
    *,
    micro_batch: int = 1,
    speed: Sequence[float] | None = None,
    lockstep: bool = True,
) -> Assignment:
    """Assign examples to padded micro-batches of at most `micro_batch` items, or whole packs (micro_batch=1).

    Items are sorted by cost and split into runs of similar total cost, one per micro-batch. The runs are then assigned
    in order of descending cost, each to the rank that would finish it first: the LPT rule, longest processing time
    first (Graham, "Bounds on multiprocessing timing anomalies", 1969).

    costs: float [items], positive. A micro-batch costs its costliest item times its number of items, because all items
    are padded to the longest.
    speed: relative speed of each rank, [ranks]; None: all are equal.
    lockstep: True: all ranks run the same number of micro-batches, so a slower rank gets smaller ones. False: a slower
    rank gets fewer, which is better where each micro-batch has a fixed overhead.
    With fewer items than ranks, some ranks get only dummy micro-batches.
    Raises: UserError for speeds that do not match the ranks or are not positive.
    """
    costs, speeds = _checked(costs, ranks, speed)
    slot_counts = _slot_counts(len(costs) / micro_batch, speeds, lockstep)
    by_cost = np.argsort(-costs, kind="stable")
    sizes = _split_into_runs(costs[by_cost], np.repeat(speeds / slot_counts, slot_counts), micro_batch)
    return _assign_runs(by_cost, sizes, costs, speeds, slot_counts)


def assign_evaluation(
    costs: np.ndarray | Sequence[float], ranks: int, micro_batch: int, *, speed: Sequence[float] | None = None
) -> Assignment:
    """Assign a whole evaluation set: every example exactly once, similar lengths together, in full micro-batches.

    A slower rank gets fewer micro-batches, with its dummies spread evenly between them, because ranks wait for each
    other whenever they gather predictions, after every few micro-batches. Arguments as for `assign`.
    """
    costs, speeds = _checked(costs, ranks, speed)
    by_cost = np.argsort(-costs, kind="stable")
    starts = np.arange(0, len(costs), micro_batch)
    sizes = np.minimum(micro_batch, len(costs) - starts).tolist()
    assignment = _assign_runs(by_cost, sizes, costs, speeds, _slot_counts(len(sizes), speeds, lockstep=False))
    if speed is None:
        return assignment
    return Assignment(tuple(_spread(rank) for rank in assignment.ranks), assignment.loads, assignment.speed)


def _spread(rank: tuple[MicroBatch, ...]) -> tuple[MicroBatch, ...]:
    """Spread the dummies evenly between the micro-batches, keeping their order: (a, b, (), ()) -> (a, (), b, ())."""
    filled = [micro for micro in rank if micro]
    spread: list[MicroBatch] = [()] * len(rank)
    for number, micro in enumerate(filled):
        spread[number * len(rank) // len(filled)] = micro
    return tuple(spread)


def assign_segments(
    costs: np.ndarray | Sequence[float],
    lengths: np.ndarray | Sequence[int],
    ranks: int,
    *,
    capacity: int,
    speed: Sequence[float] | None = None,
    lockstep: bool = True,
) -> Assignment:
    """Assign examples to unpadded micro-batches of at most `capacity` tokens, which cost the sum of their items.

    Items are assigned in order of descending cost, each to the rank that would finish it first among those with enough
    free tokens. Within that rank it goes to the micro-batch with the most free tokens, so that the rank's micro-batches
    are of similar size (worst fit); where that balances ranks worse, to the fullest one with enough free tokens (best
    fit). If an item fits nowhere, every rank gets one more micro-batch.

    costs: float [items]. lengths: int [items], in tokens. speed, lockstep: as for `assign`.
    Raises: UserError for an example longer than `capacity`.
    """
    costs, speeds = _checked(costs, ranks, speed)
    tokens = np.asarray(lengths, dtype=np.int64)
    if len(tokens) and tokens.max() > capacity:
        where = f"example {int(tokens.argmax())} of the step"
        raise UserError(f"{int(tokens.max()):,} tokens do not fit a micro-batch of {capacity:,}", where=where)
    slot_counts = _slot_counts(tokens.sum() / capacity, speeds, lockstep)
    while True:
        uniform = _assign_items(costs, tokens, speeds, slot_counts, capacity, best_fit=False)
        if uniform and uniform.imbalance <= UNIFORM_TOLERANCE:
            return uniform
        tight = _assign_items(costs, tokens, speeds, slot_counts, capacity, best_fit=True)
        if uniform and (tight is None or uniform.imbalance <= UNIFORM_TOLERANCE * tight.imbalance):
            return uniform
        if tight:
            return tight
        slot_counts = slot_counts + 1


def assign_packs(
    sizes: Sequence[int],
    costs: np.ndarray | Sequence[float],
    lengths: np.ndarray | Sequence[int],
    ranks: int,
    *,
    capacity: int,
    speed: Sequence[float] | None = None,
    lockstep: bool = True,
) -> Assignment:
    """Assign the packs of a step, one pack per micro-batch, or repack their segments if that balances better.

    Attention never crosses the boundaries of a segment, so repacking does not change what is learned. It is done where
    it makes the step at least 2 percent shorter: with fewer packs than ranks, a number of packs that is not a multiple
    of the ranks, or ranks of unequal speed.

    sizes: number of segments of each pack, [packs]. costs, lengths: of all segments, in order of the packs, [segments].
    The micro-batches of the result hold indices of segments.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    segment_costs = np.asarray(costs, dtype=np.float64)
    pack_costs = np.add.reduceat(segment_costs, ends - np.asarray(sizes)) if len(ends) else segment_costs
    whole = assign(pack_costs, ranks, speed=speed, lockstep=lockstep)
    members = [tuple(range(end - size, end)) for end, size in zip(ends.tolist(), sizes, strict=True)]
    in_segments = tuple(tuple(members[micro[0]] if micro else () for micro in rank) for rank in whole.ranks)
    whole = Assignment(in_segments, whole.loads, whole.speed)
    if whole.imbalance <= 1.02:
        return whole
    repacked = assign_segments(costs, lengths, ranks, capacity=capacity, speed=speed, lockstep=lockstep)
    return repacked if repacked.imbalance <= 0.98 * whole.imbalance else whole


def _checked(
    costs: np.ndarray | Sequence[float], ranks: int, speed: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """(costs as float64, speeds relative to the fastest rank). Raises: UserError for invalid speeds."""
    speeds = np.ones(ranks) if speed is None else np.asarray(speed, dtype=np.float64)
    if len(speeds) != ranks:
        raise UserError(f"{len(speeds)} rank speeds for {ranks} ranks", remedy="Give one speed per rank, or auto.")
    if not (np.isfinite(speeds).all() and (speeds > 0).all()):
        raise UserError(
            f"rank speeds must be above 0: {speeds.tolist()}", remedy="Give 1.0 for a full share, 0.5 for half of it."
        )
    return np.asarray(costs, dtype=np.float64), speeds / speeds.max()


def _slot_counts(micro_batches: float, speeds: np.ndarray, lockstep: bool) -> np.ndarray:
    """Micro-batches (slots) that each rank may run, int64 [ranks]. micro_batches: their number if all were full."""
    most = np.maximum(1, np.ceil(micro_batches * speeds / speeds.sum() - 1e-9)).astype(np.int64)
    return np.full_like(most, most.max()) if lockstep else most


def _split_into_runs(costs: np.ndarray, weights: np.ndarray, limit: int) -> list[int]:
    """Split descending costs into at most len(weights) runs of at most `limit` items; the size of each run, or 0.

    Minimizes the largest cost of a run divided by its weight: bisection on that target, where each run takes as many
    items as the target allows.
    """
    if limit == 1:
        return [1] * len(costs) + [0] * (len(weights) - len(costs))
    descending = costs.tolist()

    def sizes_within(target: float) -> list[int] | None:
        sizes, start = [], 0
        for weight in weights.tolist():
            left = len(descending) - start
            fitting = int(target * weight / descending[start]) if left and descending[start] > 0 else left
            size = min(limit, left, fitting)
            sizes.append(size)
            start += size
        return sizes if start == len(descending) else None

    high = float(costs.max(initial=1.0)) * limit / weights.min() * (1 + 1e-9)  # every run can take `limit` items
    low, best = 0.0, sizes_within(high)
    assert best is not None, f"{len(descending)} items in {len(weights)} runs of {limit}"
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if (sizes := sizes_within(middle)) is None:
            low = middle
        else:
            high, best = middle, sizes
    return best


def _assign_runs(
    by_cost: np.ndarray, sizes: list[int], costs: np.ndarray, speeds: np.ndarray, slot_counts: np.ndarray
) -> Assignment:
    """Assign runs of items, at most slot_counts[r] to rank r: by LPT, or rank after rank if that is better."""
    ends = np.cumsum(sizes).tolist()
    runs = [tuple(by_cost[end - size : end].tolist()) for size, end in zip(sizes, ends, strict=True)]
    work = [float(costs[run[0]]) * len(run) if run else 0.0 for run in runs]
    longest = sorted((i for i, run in enumerate(runs) if run), key=lambda i: -work[i])
    by_lpt = _longest_first(longest, work, speeds, slot_counts)
    rank_of_slot = np.repeat(np.arange(len(speeds)), slot_counts).tolist()
    in_order = {i: rank_of_slot[i] for i in longest}

    def loads_of(owner: dict[int, int]) -> np.ndarray:
        return np.bincount(list(owner.values()), weights=[work[i] for i in owner], minlength=len(speeds))

    owner = min((by_lpt, in_order), key=lambda owner: float((loads_of(owner) / speeds).max()))
    ranks: list[list[MicroBatch]] = [[] for _ in speeds]
    for i in longest:
        ranks[owner[i]].append(runs[i])
    most = max(1, max(map(len, ranks)))
    return Assignment(tuple((*rank, *[()] * (most - len(rank))) for rank in map(tuple, ranks)), loads_of(owner), speeds)


def _longest_first(
    longest: list[int], work: list[float], speeds: np.ndarray, slot_counts: np.ndarray
) -> dict[int, int]:
    """{run: rank}: each run to the rank that would finish it first, among those with a free slot (LPT)."""
    owner: dict[int, int] = {}
    loads, free_slots = np.zeros(len(speeds)), slot_counts.copy()
    for i in longest:
        owner[i] = rank = _first_to_finish(loads, work[i], speeds, free_slots, 1)
        loads[rank] += work[i]
        free_slots[rank] -= 1
    return owner


def _first_to_finish(loads: np.ndarray, work: float, speeds: np.ndarray, free: np.ndarray, size: int) -> int:
    """The rank that would finish `work` more first, among the ranks with free[rank] >= size; -1 if there is none."""
    ends = (loads + work) / speeds
    rank = int(ends.argmin())
    if free[rank] >= size:
        return rank
    ends[free < size] = np.inf
    rank = int(ends.argmin())
    return rank if free[rank] >= size else -1


def _assign_items(
    costs: np.ndarray, tokens: np.ndarray, speeds: np.ndarray, slot_counts: np.ndarray, capacity: int, *, best_fit: bool
) -> Assignment | None:
    """Assign items to slots (micro-batches), slot_counts[r] on rank r, of at most `capacity` tokens each.

    best_fit: an item goes to the fullest slot of its rank that it fits into; otherwise to the emptiest (worst fit).
    Returns None if an item fits into no slot.
    """
    free = [[capacity] * count for count in slot_counts.tolist()]  # tokens, by rank and slot
    slot_costs = [[0.0] * count for count in slot_counts.tolist()]
    slots: list[list[list[int]]] = [[[] for _ in range(count)] for count in slot_counts.tolist()]
    loads, most_free = np.zeros(len(speeds)), np.full(len(speeds), capacity)
    by_cost = np.argsort(-costs, kind="stable")
    items = zip(by_cost.tolist(), costs[by_cost].tolist(), tokens[by_cost].tolist(), strict=True)
    for item, cost, size in items:
        rank = _first_to_finish(loads, cost, speeds, most_free, size)
        if rank < 0:
            return None
        free_here = free[rank]
        slot = free_here.index(min(left for left in free_here if left >= size) if best_fit else max(free_here))
        slots[rank][slot].append(item)
        slot_costs[rank][slot] += cost
        free_here[slot] -= size
        loads[rank] += cost
        most_free[rank] = max(free_here)
    most = int(slot_counts.max())
    ranks = []
    for filled, costs_here in zip(slots, slot_costs, strict=True):
        costliest_first = sorted(range(len(filled)), key=costs_here.__getitem__, reverse=True)
        ranks.append((*(tuple(filled[slot]) for slot in costliest_first), *[()] * (most - len(filled))))
    return Assignment(tuple(ranks), loads, speeds)
