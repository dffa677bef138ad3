"""Where the pieces of a line lie: of an axis of an image, in pixels, or of a text, in tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.data.bad_rows import BadRow


def span_starts(length: int, size: int, overlap: int) -> list[int]:
    """Starts of spans of `size` that cover a line of `length`; neighbors share `overlap`.

    The last one ends where the line does, so that no span is shorter than the others; it shares more with its neighbor.
    A line no longer than `size` has one span, which is as long as the line. 0 <= overlap < size.

    >>> span_starts(10, 4, 1)
    [0, 3, 6]
    >>> span_starts(11, 4, 1)
    [0, 3, 6, 7]
    >>> span_starts(3, 4, 1)
    [0]
    """
    if length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]


def count_spans(length: int, size: int, overlap: int) -> int:
    """len(span_starts(length, size, overlap)), without making them."""
    return 1 if length <= size else 1 - (size - length) // (size - overlap)


def check_count(count: int, most: int | None) -> None:
    """Raises: BadRow for a row of more pieces than it may have."""
    if most is not None and count > most:
        raise BadRow(f"it would be cut into {count:,} pieces, more than the limit of {most:,}", kind="too_long")


def span_shares(starts: Sequence[int], size: int, length: int) -> list[float]:
    """How much of the line each span stands for: a place that k spans cover counts 1/k for each. The sum is `length`.

    >>> span_shares([0, 2], 4, 6)
    [3.0, 3.0]
    """
    ends = [min(start + size, length) for start in starts]
    cover = np.zeros(length + 1, np.int64)
    np.add.at(cover, starts, 1)
    np.add.at(cover, ends, -1)
    shares = np.concatenate(([0.0], np.cumsum(1 / np.cumsum(cover)[:length])))
    return [float(shares[end] - shares[start]) for start, end in zip(starts, ends, strict=True)]
