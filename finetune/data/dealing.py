"""A step's items to ranks, so that no rank waits for another. What the step trains on is not decided here.

Every function is pure: same arguments, same deal, on every rank, with no communication. All ranks get equally many
micro-batches, because collectives run in each; a rank that has less gets empty ones (ghosts, weight zero) at the end.
Within a rank the most expensive micro-batch comes first, so that ranks also meet in the middle of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MicroBatch = tuple[int, ...]  # positions in what was dealt; () is a ghost


@dataclass(frozen=True)
class Deal:
    """ranks[r][m]: micro-batch m of rank r; equally many for every rank, at least one."""

    ranks: tuple[tuple[MicroBatch, ...], ...]
    loads: np.ndarray  # float64 [ranks]: cost of a rank, padding included
    speed: np.ndarray  # float64 [ranks]: 1.0 is as fast as the fastest

    @property
    def micro_batches(self) -> int:
        """Micro-batches of every rank, ghosts included."""
        return len(self.ranks[0])

    @property
    def imbalance(self) -> float:
        """Time of the busiest rank over the time of an even share: 1.0 is perfect."""
        total = self.loads.sum()
        return float((self.loads / self.speed).max() * self.speed.sum() / total) if total > 0 else 1.0


def deal(
    costs: np.ndarray | Sequence[float], ranks: int, *, micro_batch: int = 1, speed: Sequence[float] | None = None
) -> Deal:
    """Deal items into padded micro-batches of at most `micro_batch`, or packs (micro_batch 1) one by one.

    costs: float [items]; a micro-batch costs its dearest item times its items, because all are padded to the longest.
    speed: relative speed of each rank; None: equal. Fewer items than ranks: the others get ghosts.
    Items sorted by cost are cut into runs, first of equal cost where the micro-batch leaves room, and
    runs go longest first to the rank that finishes first (LPT, Graham 1969).
    """
    costs = np.asarray(costs, dtype=np.float64)
    pace = _pace(ranks, speed)
    per_rank = max(1, int(np.ceil(len(costs) * pace.max() / pace.sum() / micro_batch - 1e-9)))
    by_cost = np.argsort(-costs, kind="stable")
    runs = _cut(costs[by_cost], np.repeat(pace, per_rank), micro_batch)
    return _assign([by_cost[a:b] for a, b in runs], costs, pace, per_rank)
