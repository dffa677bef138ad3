"""How much of a step each rank should do, by its speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def work_shares(speed: Sequence[float], total: float, overhead: float) -> list[float]:
    """The shares of `total` cost with which all ranks finish together, relative to the largest share: [ranks].

    A rank finishes after (overhead + share) / speed. overhead: the work of every rank in a step that does not depend on
    its share (the optimizer, its part in collectives), in the unit of costs. A rank that is too slow to do more than
    this gets the smallest share, 0.001.

    [1, 0.5], 90, 0 -> [1, 0.5]
    [1, 0.5], 90, 15 -> [1, 0.38]: costs of 65 and 25, and both ranks finish after 80.
    """
    speeds = np.asarray(speed, dtype=np.float64)
    fastest = np.sort(speeds)[::-1]
    count = np.arange(1, len(speeds) + 1)
    ends = (total + overhead * count) / np.cumsum(fastest)  # finish time if only the `count` fastest get a share
    end = ends[np.flatnonzero(ends * fastest >= overhead)[-1]]
    shares = np.maximum(end * speeds - overhead, 0.0)
    return np.maximum(shares / shares.max(), 1e-3).tolist()
