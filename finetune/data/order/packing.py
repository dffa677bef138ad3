"""Examples into packs of at most `capacity` tokens: best-fit-decreasing on the histogram of ALL lengths.

Peers pack per 1,000 rows, or one example after the other. Here equal lengths are placed together, and bins are held as
runs of bins with equal room: the work depends on how many *different* lengths there are, not on how many examples.
Which example of a length goes where changes with every epoch; the packs' shapes do not, so epochs are equally long.
(Where few examples share a length, epochs therefore share many packs; their order always changes.)
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from finetune.data.order.rng import Purpose, draw
from finetune.errors import UserError

EXACT_LENGTHS = 4096  # up to so many different lengths best-fit-decreasing is exact; with more, lengths are rounded up
ROUNDED_BITS = 10  # to so many significant bits: at most 0.2 percent of a pack, and the work stays bounded
BLOCK = 1 << 13  # items handled at once
LOW_HALF = np.uint64(2**32 - 1)


@dataclass(frozen=True)
class Packing:
    """What is packed: lengths of all examples in tokens (int [n]) and the capacity of a pack in tokens."""

    lengths: np.ndarray
    capacity: int


@dataclass(frozen=True)
class Packs:
    """Pack p holds examples indices[offsets[p]:offsets[p + 1]], ascending."""

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
    """Raise UserError for lengths that cannot be packed: none may be below 1 or above the capacity."""
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
    """Pack every example exactly once; a pure function of its arguments.

    lengths: int [n], each in 1..capacity; n may be 0. Memory: 8 bytes an example and a block, the result included: it
    is sorted in place, twice, as 64-bit keys whose low half is the example.
    Raises UserError naming count and first index of lengths outside 1..capacity.
    """
    lengths = np.asarray(lengths, dtype=None if len(lengths) else np.int64)
    check_lengths(lengths, capacity)
    counts = np.bincount(lengths)
    occurring = np.flatnonzero(counts)
    values, classes = np.unique(_round_up(occurring, capacity), return_inverse=True)
    items_of_class = np.bincount(classes, weights=counts[occurring], minlength=len(values)).astype(np.int64)
    rows = _plan(values[::-1], items_of_class[::-1], capacity)

    rank_of_length = np.zeros(len(counts), dtype=np.uint64)  # 0 for the longest class, as the plan takes them
    rank_of_length[occurring] = len(values) - 1 - classes
    class_bits = len(values).bit_length()
    keys = draw(len(lengths), seed=seed, epoch=epoch, purpose=Purpose.TIES)
    for block in _blocks(len(keys)):  # class, then chance, then example
        rng = keys[block] >> np.uint64(class_bits) & ~LOW_HALF
        rank = rank_of_length[lengths[block]] << np.uint64(64 - class_bits)
        keys[block] = rank | rng | np.arange(block.start, block.stop, dtype=np.uint64)
    keys.sort()  # no two keys are equal, so any algorithm gives this order

    first, bins, each = rows.T
    row_ends = np.cumsum(bins * each)
    for block in _blocks(len(keys)):  # bin, then example
        position = np.arange(block.start, block.stop)
        row = np.searchsorted(row_ends, position, side="right")
        nth = position - (row_ends - bins * each)[row]
        keys[block] = (first[row] + nth // each[row]).astype(np.uint64) << np.uint64(32) | keys[block] & LOW_HALF
    keys.sort()
    keys &= LOW_HALF
    return Packs(keys.view(np.int64), _offsets(first, bins, each))


def _blocks(count: int) -> list[slice]:
    """0..count in slices small enough that temporary arrays do not matter."""
    return [slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def _round_up(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Different lengths -> the lengths that are planned: themselves, or rounded up when there are very many."""
    if len(lengths) <= EXACT_LENGTHS:
        return lengths
    steps = 1 << np.maximum(np.frexp(lengths)[1] - ROUNDED_BITS, 0)
    return np.minimum(-(-lengths // steps) * steps, capacity)


def _offsets(first: np.ndarray, bins: np.ndarray, each: np.ndarray) -> np.ndarray:
    """Rows of a plan -> where each bin begins among the items of all bins: int64 [bins + 1]."""
    offsets = np.zeros(int((first + bins).max(initial=0)) + 2, dtype=np.int64)
    np.add.at(offsets, first + 1, each)  # a row adds `each` items to all bins from first on
    np.subtract.at(offsets, first + bins + 1, each)
    np.cumsum(offsets, out=offsets)  # items of each bin
    np.cumsum(offsets, out=offsets)  # items of all bins before
    return offsets[:-1]


def _plan(values: np.ndarray, counts: np.ndarray, capacity: int) -> np.ndarray:
    """Best-fit-decreasing of counts[i] items of length values[i] (descending) -> int64 [rows, 3].

    A row (first, bins, each) puts `each` items into every one of `bins` consecutive bins from `first` on; rows take
    the items in their order. A bin that fits best goes on fitting best until less than one item fits, so it takes
    room // value items at once, and all bins of a run take them together.
    """
    rows = array("q")
    rooms = _Rooms(capacity)
    smallest = int(values[-1]) if len(values) else 0
    opened = 0
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        while count:
            room, first, bins = rooms.take(value) or (capacity, opened, count)  # none fits: new bins, as many as needed
            each = min(room // value, count)
            used = min(bins, count // each)
            if first == opened:
                opened += used
            elif used < bins:
                rooms.put(room, first + used, bins - used)
            rows.extend((first, used, each))
            if room - each * value >= smallest:
                rooms.put(room - each * value, first, used)
            count -= used * each
    return np.frombuffer(rows, dtype=np.int64).reshape(-1, 3) if rows else np.zeros((0, 3), dtype=np.int64)


class _Rooms:
    """Runs of bins by the room left in them, and which rooms occur: a set of integers with a fast `next not below`."""

    WORD = 256  # bits: Python's integers serve as words of any size

    def __init__(self, capacity: int) -> None:
        self.runs: dict[int, list[tuple[int, int]]] = {}  # room -> (first bin, bins)
        self.words = [0] * (capacity // self.WORD + 1)  # bit r of the whole: some bin has room r
        self.filled = 0  # bit w: words[w] is not 0

    def put(self, room: int, first: int, bins: int) -> None:
        if room in self.runs:
            self.runs[room].append((first, bins))
            return
        self.runs[room] = [(first, bins)]
        word, bit = divmod(room, self.WORD)
        self.words[word] |= 1 << bit
        self.filled |= 1 << word

    def take(self, value: int) -> tuple[int, int, int] | None:
        """Remove and return the run with the least room that `value` fits into: (room, first bin, bins)."""
        word, bit = divmod(value, self.WORD)
        if bits := self.words[word] >> bit:
            room = value + _lowest(bits)
        elif higher := self.filled >> (word + 1):
            word += 1 + _lowest(higher)
            room = word * self.WORD + _lowest(self.words[word])
        else:
            return None
        runs = self.runs[room]
        first, bins = runs.pop()
        if not runs:
            del self.runs[room]
            word, bit = divmod(room, self.WORD)
            self.words[word] ^= 1 << bit
            if not self.words[word]:
                self.filled ^= 1 << word
        return room, first, bins


def _lowest(bits: int) -> int:
    """Position of the lowest set bit."""
    return (bits & -bits).bit_length() - 1
