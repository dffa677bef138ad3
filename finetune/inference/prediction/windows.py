"""Which examples are answered together: a function of the window and the budget alone, never of the ranks.

Rows are taken in windows. The examples of a window are sorted by cost, so that those of a chunk are about equally long and
little is padded, the costly ones first, so that what is left for the end is small.
"""

from __future__ import annotations

from collections.abc import Sequence

WINDOW_ROWS = 8192
WINDOW_BYTES = 128 << 20  # of its rows in memory: a window of large images has fewer rows
TAIL_SHARE = 32  # in the last window, a chunk has at most this part of what is left
TAIL_CHUNK = 16  # ... but at least this part of the budget


def cut_into_chunks(
    costs: Sequence[int], budget: int, *, groups: Sequence[int] | None = None, last: bool = False
) -> list[list[int]]:
    """Indices of the examples of each chunk, such as cut_into_chunks([3, 9, 2, 4], 10) -> [[1], [3, 0], [2]].

    A chunk costs at most `budget` once its examples are padded to the costliest one, or is a single example.
    groups: examples of different groups never share a chunk. last: no window follows, so chunks become smaller towards
    the end, and ranks of unequal speed end at about the same time.
    """
    group_of = groups or [0] * len(costs)
    order = sorted(range(len(costs)), key=lambda index: (-costs[index], group_of[index], index))
    by_group: dict[int, list[int]] = {}
    for index in order:
        by_group.setdefault(group_of[index], []).append(index)
    chunks: list[list[int]] = []
    left = sum(costs)
    for indices in by_group.values():
        start = 0
        while start < len(indices):
            limit = _limit(left, budget) if last else budget
            count = max(1, limit // max(1, costs[indices[start]]))
            chunk = indices[start : start + count]
            chunks.append(chunk)
            left -= sum(costs[index] for index in chunk)
            start += count
    return chunks


def _limit(left: int, budget: int) -> int:
    """Cost of the next chunk of the last window. left: cost of what is not in a chunk yet."""
    return max(1, min(budget, max(left // TAIL_SHARE, budget // TAIL_CHUNK)))


def row_bytes(row: object) -> int:
    """About what a row takes in memory: the length of its texts and bytes."""
    if isinstance(row, (str, bytes)):
        return len(row)
    if isinstance(row, dict):
        return sum(row_bytes(value) for value in row.values())
    if isinstance(row, (list, tuple)):
        return 8 * len(row) + sum(row_bytes(value) for value in row if not isinstance(value, (int, float)))
    return 8
