"""A step's items to ranks, so that no rank waits for another. What the step trains on is not decided here.

Every function is pure: same arguments, same deal, on every rank, with no communication. All ranks get equally many
micro-batches, because collectives run in each; a rank that has less gets empty ones (dummies, of weight zero).
Within a rank the most expensive micro-batch comes first, so that ranks also meet in the middle of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.errors import UserError

MicroBatch = tuple[int, ...]  # positions in what was assigned; () is a dummy
ALIKE_ENOUGH = 1.01  # micro-batches of a rank are alike unless that ends the step so much later


@dataclass(frozen=True)
class Assignment:
    """ranks[r][m]: micro-batch m of rank r; equally many for every rank, at least one."""

    ranks: tuple[tuple[MicroBatch, ...], ...]
    loads: np.ndarray  # float64 [ranks]: cost of a rank, padding included
    speed: np.ndarray  # float64 [ranks]: 1.0 is as fast as the fastest

    @property
    def micro_batches(self) -> int:
        """Micro-batches of every rank, dummies included."""
        return len(self.ranks[0])

    @property
    def imbalance(self) -> float:
        """Time of the busiest rank over the time of an even share: 1.0 is perfect."""
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
    """Deal examples into padded micro-batches of at most `micro_batch`, or whole packs (micro_batch=1).

    costs: float [items], positive. A micro-batch costs its dearest item times its number of items, because all are
    padded to the longest. speed: relative speed of each rank; None: equal. lockstep: all ranks run equally many
    micro-batches, so a slower rank gets smaller ones; else it gets fewer, which costs less where a micro-batch costs
    something by itself. With fewer items than ranks, some get only dummies.

    Items sorted by cost are cut into runs, as equal in cost as the micro-batch allows, and runs go longest first to the
    rank that would finish first (LPT, Graham 1969).
    """
    costs, speeds = _checked(costs, ranks, speed)
    slot_counts = _slot_counts(len(costs) / micro_batch, speeds, lockstep)
    by_cost = np.argsort(-costs, kind="stable")
    sizes = _cut(costs[by_cost], np.repeat(speeds / slot_counts, slot_counts), micro_batch)
    return _assign_runs(by_cost, sizes, costs, speeds, slot_counts)


def assign_evaluation(
    costs: np.ndarray | Sequence[float], ranks: int, micro_batch: int, *, speed: Sequence[float] | None = None
) -> Assignment:
    """Deal a whole evaluation set: every example exactly once, like lengths together, full micro-batches.

    A slower rank gets fewer of them, and its dummies lie between them: ranks hand predictions over every so many
    micro-batches, and wait for each other there.
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
    """The micro-batches in their order, dummies between them: (a, b, (), ()) -> (a, (), b, ())."""
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
    """Deal examples into unpadded micro-batches of at most `capacity` tokens: a micro-batch costs the sum of its items.

    Dearest first to the rank that would finish first, among those with room; there into its emptiest micro-batch, so
    that all micro-batches of a rank are alike, or, where that wastes room, into the fullest that can take it. If an
    item finds no room anywhere, every rank gets one more micro-batch. lockstep: as in `deal`.
    Raises UserError for an example longer than the capacity.
    """
    costs, speeds = _checked(costs, ranks, speed)
    tokens = np.asarray(lengths, dtype=np.int64)
    if len(tokens) and tokens.max() > capacity:
        where = f"example {int(tokens.argmax())} of the step"
        raise UserError(f"{int(tokens.max()):,} tokens do not fit a micro-batch of {capacity:,}", where=where)
    slot_counts = _slot_counts(tokens.sum() / capacity, speeds, lockstep)
    while True:
        alike = _fit(costs, tokens, speeds, slot_counts, capacity, fullest=False)
        if alike and alike.imbalance <= ALIKE_ENOUGH:
            return alike
        tight = _fit(costs, tokens, speeds, slot_counts, capacity, fullest=True)
        if alike and (tight is None or alike.imbalance <= ALIKE_ENOUGH * tight.imbalance):
            return alike
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
    """Deal a step's packs: a pack is a micro-batch, unless the ranks cannot share packs evenly.

    sizes: segments of each pack; costs and lengths: of all segments, pack after pack; micro-batches hold positions in
    these. Attention never crosses a segment's border, so packs can be laid out anew without changing what is learnt:
    done where it ends the step at least 2 percent sooner (fewer packs than ranks, a number of packs that the ranks do
    not divide, unequal speeds).
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    each = np.asarray(costs, dtype=np.float64)
    sums = np.add.reduceat(each, ends - np.asarray(sizes)) if len(ends) else each
    whole = assign(sums, ranks, speed=speed, lockstep=lockstep)
    members = [tuple(range(end - size, end)) for end, size in zip(ends.tolist(), sizes, strict=True)]
    in_segments = tuple(tuple(members[micro[0]] if micro else () for micro in rank) for rank in whole.ranks)
    whole = Assignment(in_segments, whole.loads, whole.speed)
    if whole.imbalance <= 1.02:
        return whole
    anew = assign_segments(costs, lengths, ranks, capacity=capacity, speed=speed, lockstep=lockstep)
    return anew if anew.imbalance <= 0.98 * whole.imbalance else whole


def work_shares(speed: Sequence[float], total: float, overhead: float) -> list[float]:
    """What each rank should get of `total` cost so that all finish together, relative to the largest share: [ranks].

    A rank finishes after (overhead + share) / speed: overhead is what each does in a step whatever its share (the
    optimiser, its part in collectives), in the unit of costs. A rank so slow that it can do no more than that gets next
    to nothing. [1, 0.5], 90, 0 -> [1, 0.5]; [1, 0.5], 90, 15 -> [1, 0.38]: 65 and 25, and both finish after 80.
    """
    speeds = np.asarray(speed, dtype=np.float64)
    fastest = np.sort(speeds)[::-1]
    count = np.arange(1, len(speeds) + 1)
    ends = (total + overhead * count) / np.cumsum(fastest)  # if only the `count` fastest ranks got a share
    end = ends[np.flatnonzero(ends * fastest >= overhead)[-1]]
    shares = np.maximum(end * speeds - overhead, 0.0)
    return np.maximum(shares / shares.max(), 1e-3).tolist()


def _checked(
    costs: np.ndarray | Sequence[float], ranks: int, speed: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Costs as float64 and the pace of each rank: 1.0 for the fastest."""
    speeds = np.ones(ranks) if speed is None else np.asarray(speed, dtype=np.float64)
    if len(speeds) != ranks:
        raise UserError(f"{len(speeds)} rank speeds for {ranks} ranks", remedy="Give one speed for each rank, or auto.")
    if not (np.isfinite(speeds).all() and (speeds > 0).all()):
        raise UserError(
            f"rank speeds must be above 0: {speeds.tolist()}", remedy="1.0 is a full share, 0.5 half of it."
        )
    return np.asarray(costs, dtype=np.float64), speeds / speeds.max()


def _slot_counts(micro_batches: float, speeds: np.ndarray, lockstep: bool) -> np.ndarray:
    """How many micro-batches each rank may run: int64 [ranks]. micro_batches: how many there are, at their fullest."""
    most = np.maximum(1, np.ceil(micro_batches * speeds / speeds.sum() - 1e-9)).astype(np.int64)
    return np.full_like(most, most.max()) if lockstep else most


def _cut(costs: np.ndarray, weights: np.ndarray, limit: int) -> list[int]:
    """Cut descending costs into at most len(weights) runs of at most `limit` -> the size of run i, 0 for none.

    The dearest run per weight is as cheap as can be: bisection on that target, each run as long as the target allows.
    """
    if limit == 1:
        return [1] * len(costs) + [0] * (len(weights) - len(costs))
    each = costs.tolist()

    def sizes_within(target: float) -> list[int] | None:
        sizes, start = [], 0
        for weight in weights.tolist():
            left = len(each) - start
            size = min(limit, left, int(target * weight / each[start]) if left and each[start] > 0 else left)
            sizes.append(size)
            start += size
        return sizes if start == len(each) else None

    high = float(costs.max(initial=1.0)) * limit / weights.min() * (1 + 1e-9)  # every run takes its limit
    low, best = 0.0, sizes_within(high)
    assert best is not None, f"{len(each)} items in {len(weights)} runs of {limit}"
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
    """Runs of items to ranks, at most rooms[r] to rank r: the better of LPT and of the runs in turn, rank after rank."""
    ends = np.cumsum(sizes).tolist()
    runs = [tuple(by_cost[end - size : end].tolist()) for size, end in zip(sizes, ends, strict=True)]
    work = [float(costs[run[0]]) * len(run) if run else 0.0 for run in runs]
    longest = sorted((i for i, run in enumerate(runs) if run), key=lambda i: -work[i])
    owner = _least_loaded(longest, work, speeds, slot_counts)
    turns = np.repeat(np.arange(len(speeds)), slot_counts).tolist()
    in_turn = {i: turns[i] for i in longest}

    def loads_of(owner: dict[int, int]) -> np.ndarray:
        return np.bincount(list(owner.values()), weights=[work[i] for i in owner], minlength=len(speeds))

    owner = min((owner, in_turn), key=lambda each: float((loads_of(each) / speeds).max()))
    ranks: list[list[MicroBatch]] = [[] for _ in speeds]
    for i in longest:
        ranks[owner[i]].append(runs[i])
    most = max(1, max(map(len, ranks)))
    return Assignment(tuple((*rank, *[()] * (most - len(rank))) for rank in map(tuple, ranks)), loads_of(owner), speeds)


def _least_loaded(longest: list[int], work: list[float], speeds: np.ndarray, slot_counts: np.ndarray) -> dict[int, int]:
    """Run -> rank: each to the rank that would finish it first, among those with room."""
    owner: dict[int, int] = {}
    loads, room = np.zeros(len(speeds)), slot_counts.copy()
    for i in longest:
        owner[i] = rank = _first_done(loads, work[i], speeds, room, 1)
        loads[rank] += work[i]
        room[rank] -= 1
    return owner


def _first_done(loads: np.ndarray, work: float, speeds: np.ndarray, room: np.ndarray, size: int) -> int:
    """The rank that would finish first with `work` more, among those with room for `size`; -1 where none has."""
    ends = (loads + work) / speeds
    rank = int(ends.argmin())
    if room[rank] >= size:
        return rank
    ends[room < size] = np.inf
    rank = int(ends.argmin())
    return rank if room[rank] >= size else -1


def _fit(
    costs: np.ndarray, tokens: np.ndarray, speeds: np.ndarray, slot_counts: np.ndarray, capacity: int, *, fullest: bool
) -> Assignment | None:
    """Items into rooms[r] micro-batches of rank r, none above the capacity; None where an item finds no room."""
    room = [[capacity] * count for count in slot_counts.tolist()]
    work = [[0.0] * count for count in slot_counts.tolist()]
    slots: list[list[list[int]]] = [[[] for _ in rank] for rank in room]
    loads, widest = np.zeros(len(speeds)), np.full(len(speeds), capacity)
    by_cost = np.argsort(-costs, kind="stable")
    items = zip(by_cost.tolist(), costs[by_cost].tolist(), tokens[by_cost].tolist(), strict=True)
    for item, cost, size in items:
        rank = _first_done(loads, cost, speeds, widest, size)
        if rank < 0:
            return None
        mine = room[rank]
        slot = mine.index(min(left for left in mine if left >= size) if fullest else max(mine))
        slots[rank][slot].append(item)
        work[rank][slot] += cost
        mine[slot] -= size
        loads[rank] += cost
        widest[rank] = max(mine)
    most = int(slot_counts.max())
    ranks = []
    for filled, each in zip(slots, work, strict=True):
        costliest_first = sorted(range(len(filled)), key=each.__getitem__, reverse=True)
        ranks.append((*(tuple(filled[slot]) for slot in costliest_first), *[()] * (most - len(filled))))
    return Assignment(tuple(ranks), loads, speeds)
