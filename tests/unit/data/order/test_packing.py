"""Tests that packs hold every example once and never overflow, that packing by histogram equals best-fit decreasing,
that time and memory stay small for millions of lengths, and that invalid lengths are reported with count and example.
"""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.order import packing
from finetune.data.order.packing import pack
from finetune.errors import UserError


@st.composite
def lengths_and_capacity(draw):
    capacity = draw(st.integers(1, 300))
    return np.array(draw(st.lists(st.integers(1, capacity), max_size=120)), dtype=np.int64), capacity


def best_fit_decreasing(lengths, capacity):
    """The textbook algorithm, one example at a time: the free space of each bin, which does not depend on ties."""
    free = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [space for space in free if space >= length]
        if fitting:
            free.remove(min(fitting))
        free.append((min(fitting) if fitting else capacity) - length)
    return sorted(free)


@given(lengths_and_capacity(), st.integers(0, 2**40), st.integers(0, 50))
def test_every_example_once_and_no_pack_overflows(drawn, seed, epoch):
    lengths, capacity = drawn
    packs = pack(lengths, capacity, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(packs.indices), np.arange(len(lengths)))
    assert packs.offsets[0] == 0 and packs.offsets[-1] == len(lengths)
    assert (np.diff(packs.offsets) > 0).all()
    assert (packs.sums(lengths) <= capacity).all()
    assert [lengths[packs[p]].sum() for p in range(len(packs))] == packs.sums(lengths).tolist()


@given(lengths_and_capacity())
def test_the_histogram_packs_as_the_textbook_does(drawn):
    lengths, capacity = drawn
    packs = pack(lengths, capacity)
    assert sorted((capacity - packs.sums(lengths)).tolist()) == best_fit_decreasing(lengths, capacity)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_rounded_lengths_never_overflow(seed):
    """With more distinct lengths than are packed exactly, lengths are rounded up, never down."""
    rng = np.random.default_rng(seed)
    capacity = 50_001
    lengths = np.concatenate((rng.integers(1, capacity + 1, 20_000), [capacity, 1]))
    packs = pack(lengths, capacity, seed=seed)
    assert len(np.unique(lengths)) > packing.EXACT_LENGTHS
    assert packs.sums(lengths).max() == capacity
    assert np.array_equal(np.sort(packs.indices), np.arange(len(lengths)))


def test_epochs_shuffle_examples_but_keep_the_lengths_of_packs():
    lengths = np.random.default_rng(0).integers(30, 60, 10_000)
    first, again, second = (pack(lengths, 256, seed=7, epoch=epoch) for epoch in (0, 0, 1))
    assert np.array_equal(first.indices, again.indices)
    assert np.array_equal(first.offsets, second.offsets)

    def neighbors(packs):
        return {(int(a), int(b)) for p in range(len(packs)) for a in packs[p] for b in packs[p] if a < b}

    shared = neighbors(first) & neighbors(second)
    assert len(shared) < 0.05 * len(neighbors(first))


@pytest.mark.parametrize(
    ("lengths", "where", "words"),
    [
        ([3, 9, 4, 11], "example 1", "2 of 4 examples are longer than a pack of 8 tokens (the first has 9)"),
        ([3, 0], "example 1", "1 of 2 examples have no tokens (the first has 0)"),
    ],
)
def test_invalid_lengths_are_reported(lengths, where, words):
    with pytest.raises(UserError) as error:
        pack(np.array(lengths), 8)
    assert error.value.where == where
    assert error.value.what == words
    assert error.value.remedy


def test_no_example_and_one():
    assert len(pack([], 8)) == 0
    assert pack(np.array([8]), 8)[0].tolist() == [0]


def test_time_and_memory_for_a_million_lengths():
    lengths = np.clip(np.random.default_rng(1).lognormal(np.log(1500), 1.6, 1_000_000), 1, 65536).astype(np.int64)
    start = time.perf_counter()
    pack(lengths, 65536)
    assert time.perf_counter() - start < 3.0
    tracemalloc.start()
    packs = pack(lengths, 65536)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * lengths.nbytes
    assert lengths.sum() / (len(packs) * 65536) > 0.99
