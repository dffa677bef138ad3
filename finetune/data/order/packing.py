"""Packs examples into bins of at most `capacity` tokens: best-fit decreasing over the histogram of all lengths.

Examples of equal length are placed together, and bins with equal free space are stored as runs, so the work depends on
the number of distinct lengths, not on the number of examples. The lengths in each pack are the same in every epoch, so
all epochs have the same number of packs; which example of a length goes into which pack is drawn anew in every epoch.
(Where few examples share a length, many packs are therefore the same in all epochs; their order always changes.)
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from finetune.data.order.rng import Purpose, draw
from finetune.errors import UserError

EXACT_LENGTHS = 4096  # with more distinct lengths than this, lengths are rounded up, which bounds the work
ROUNDED_BITS = 10  # significant bits of rounded lengths: wastes at most 0.2 percent of a pack
BLOCK = 1 << 13  # items processed at once
LOW_HALF = np.uint64(2**32 - 1)


@dataclass(frozen=True)
class Packing:
    """The arguments of `pack`: lengths of all examples in tokens, int [n], and the capacity of a pack in tokens."""

    lengths: np.ndarray
    capacity: int


@dataclass(frozen=True)
class Packs:
    """Pack p holds the examples indices[offsets[p]:offsets[p + 1]], ascending."""

    indices: np.ndarray  # int64 [examples]: each example exactly once
    offsets: np.ndarray  # int64 [packs + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.indices[self.offsets[pack] : self.offsets[pack + 1]]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over each pack of a value per example, such as lengths or costs: [examples] -> [packs]."""
        totals = np.zeros(len(self), dtype=values.dtype)
        for block in _blocks(len(self)):
            offsets = self.offsets[block.start : block.stop + 1]
            chosen = values[self.indices[offsets[0] : offsets[-1]]]
            totals[block] = np.add.reduceat(chosen, offsets[:-1] - offsets[0])
        return totals


def check_lengths(lengths: np.ndarray, capacity: int) -> None:
    """Check that all lengths are in 1..capacity. Raises: UserError with the count and the first example that is not."""
    if capacity < 1:
        raise UserError(f"a pack of {capacity} tokens holds nothing", remedy="Give a capacity of at least 1 token.")
    for wrong, fault, remedy in (
        (lengths < 1, "have no tokens", "Drop them: an example without tokens teaches nothing."),
        (lengths > capacity, f"are longer than a pack of {capacity:,} tokens", "Split, truncate or drop them first."),
    ):
        if count := int(np.count_nonzero(wrong)):
            first = int(np.argmax(wrong))
            what = f"{count:,} of {len(lengths):,} examples {fault} (the first has {int(lengths[first]):,})"
            raise UserError(what, where=f"example {first}", remedy=remedy)


def pack(lengths: np.ndarray, capacity: int, *, seed: int = 0, epoch: int = 0) -> Packs:
    """Pack every example exactly once. A pure function of its arguments.

    lengths: int [n], each in 1..capacity; n may be 0.
    Memory: 8 bytes per example and one block, including the result. Examples are sorted twice, in place, as 64-bit keys
    whose lower half is the index of the example.
    Raises: UserError for lengths outside 1..capacity.
    """
    lengths = np.asarray(lengths, dtype=None if len(lengths) else np.int64)
    check_lengths(lengths, capacity)
    counts = np.bincount(lengths)
    occurring = np.flatnonzero(counts)
    values, classes = np.unique(_round_up(occurring, capacity), return_inverse=True)
    items_of_class = np.bincount(classes, weights=counts[occurring], minlength=len(values)).astype(np.int64)
    rows = _plan(values[::-1], items_of_class[::-1], capacity)

    class_of_length = np.zeros(len(counts), dtype=np.uint64)  # 0 for the longest, in the order of the plan
    class_of_length[occurring] = len(values) - 1 - classes
    class_bits = len(values).bit_length()
    keys = draw(len(lengths), seed=seed, epoch=epoch, purpose=Purpose.TIES)
    for block in _blocks(len(keys)):  # sorted by class, then a random number, then example
        random_part = keys[block] >> np.uint64(class_bits) & ~LOW_HALF
        class_part = class_of_length[lengths[block]] << np.uint64(64 - class_bits)
        keys[block] = class_part | random_part | np.arange(block.start, block.stop, dtype=np.uint64)
    keys.sort()  # all keys are distinct, so any sorting algorithm gives the same order

    first, bins, per_bin = rows.T
    row_ends = np.cumsum(bins * per_bin)
    for block in _blocks(len(keys)):  # sorted by bin, then example
        position = np.arange(block.start, block.stop)
        row = np.searchsorted(row_ends, position, side="right")
        nth = position - (row_ends - bins * per_bin)[row]
        keys[block] = (first[row] + nth // per_bin[row]).astype(np.uint64) << np.uint64(32) | keys[block] & LOW_HALF
    keys.sort()
    keys &= LOW_HALF
    return Packs(keys.view(np.int64), _offsets(first, bins, per_bin))


def _blocks(count: int) -> list[slice]:
    """Slices that cover 0..count, small enough that temporary arrays need little memory."""
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def _round_up(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Distinct lengths, rounded up if there are more than EXACT_LENGTHS."""
    if len(lengths) <= EXACT_LENGTHS:
        return lengths
    steps = 1 << np.maximum(np.frexp(lengths)[1] - ROUNDED_BITS, 0)
    return np.minimum(-(-lengths // steps) * steps, capacity)


def _offsets(first: np.ndarray, bins: np.ndarray, per_bin: np.ndarray) -> np.ndarray:
    """The offset of each bin among the items of all bins, from the rows of a plan: int64 [bins + 1]."""
    offsets = np.zeros(int((first + bins).max(initial=0)) + 2, dtype=np.int64)
    np.add.at(offsets, first + 1, per_bin)  # a row adds `per_bin` items to each of its bins
    np.subtract.at(offsets, first + bins + 1, per_bin)
    np.cumsum(offsets, out=offsets)  # items of each bin
    np.cumsum(offsets, out=offsets)  # items of all previous bins
    return offsets[:-1]


def _plan(values: np.ndarray, counts: np.ndarray, capacity: int) -> np.ndarray:
    """Best-fit decreasing of counts[i] items of length values[i] (descending): int64 [rows, 3].

    A row (first, bins, per_bin) puts `per_bin` items into each of `bins` consecutive bins from `first` on. Rows take
    the items in order. The bin that fits best stays the best fit until no further item fits, so it takes
    free // value items at once, and all bins of a run take them together.
    """
    rows = array("q")
    free_bins = _FreeBins(capacity)
    smallest = int(values[-1]) if len(values) else 0
    opened = 0
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        while count:
            free, first, bins = free_bins.take(value) or (capacity, opened, count)  # if none fits: new, empty bins
            per_bin = min(free // value, count)
            used = min(bins, count // per_bin)
            if first == opened:
                opened += used
            elif used < bins:
                free_bins.put(free, first + used, bins - used)
            rows.extend((first, used, per_bin))
            if free - per_bin * value >= smallest:
                free_bins.put(free - per_bin * value, first, used)
            count -= used * per_bin
    return np.frombuffer(rows, dtype=np.int64).reshape(-1, 3) if rows else np.zeros((0, 3), dtype=np.int64)


class _FreeBins:
    """Runs of bins by their free space, with a fast lookup of the smallest free space of at least some size.

    The free spaces that occur are kept as a two-level bit set.
    """

    WORD = 256  # bits per word; Python's integers can be of any size

    def __init__(self, capacity: int) -> None:
        self.runs: dict[int, list[tuple[int, int]]] = {}  # free space -> (first bin, bins)
        self.words = [0] * (capacity // self.WORD + 1)  # bit f over all words: some bin has free space f
        self.filled = 0  # bit w is set if words[w] is not 0

    def put(self, free: int, first: int, bins: int) -> None:
        """Add a run of `bins` bins with `free` tokens of free space each."""
        if free in self.runs:
            self.runs[free].append((first, bins))
            return
        self.runs[free] = [(first, bins)]
        word, bit = divmod(free, self.WORD)
        self.words[word] |= 1 << bit
        self.filled |= 1 << word

    def take(self, value: int) -> tuple[int, int, int] | None:
        """Remove and return the run with the least free space >= value: (free, first bin, bins), or None."""
        word, bit = divmod(value, self.WORD)
        if bits := self.words[word] >> bit:
            free = value + _lowest(bits)
        elif higher := self.filled >> (word + 1):
            word += 1 + _lowest(higher)
            free = word * self.WORD + _lowest(self.words[word])
        else:
            return None
        runs = self.runs[free]
        first, bins = runs.pop()
        if not runs:
            del self.runs[free]
            word, bit = divmod(free, self.WORD)
            self.words[word] ^= 1 << bit
            if not self.words[word]:
                self.filled ^= 1 << word
        return free, first, bins


def _lowest(bits: int) -> int:
    """Index of the lowest set bit."""
    return (bits & -bits).bit_length() - 1
