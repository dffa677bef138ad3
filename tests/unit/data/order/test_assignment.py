"""Tests that every item is assigned to exactly one rank, that all ranks run the same number of micro-batches, and that
loads are reported correctly and balanced, also for few items and ranks of unequal speed.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.order.assignment import assign, assign_evaluation, assign_packs, assign_segments
from finetune.data.order.work_shares import work_shares
from finetune.errors import UserError

costs_lists = st.lists(st.floats(0.5, 100), max_size=60).map(np.array)
speeds = st.integers(1, 9).flatmap(
    lambda ranks: st.tuples(st.just(ranks), st.none() | st.lists(st.floats(0.2, 2), min_size=ranks, max_size=ranks))
)


def check_complete(assignment, count, ranks):
    """Every item once; the same number of micro-batches on all ranks, at least one; dummies last."""
    assert len(assignment.ranks) == ranks
    assert {len(rank) for rank in assignment.ranks} == {assignment.micro_batches}
    assert assignment.micro_batches >= 1
    assert sorted(i for rank in assignment.ranks for micro in rank for i in micro) == list(range(count))
    for rank in assignment.ranks:
        filled = [bool(micro) for micro in rank]
        assert filled == sorted(filled, reverse=True)


@given(costs_lists, speeds, st.integers(1, 20))
def test_padded_micro_batches(costs, ranks_speed, micro_batch):
    ranks, speed = ranks_speed
    assignment = assign(costs, ranks, micro_batch=micro_batch, speed=speed)
    check_complete(assignment, len(costs), ranks)
    assert all(len(micro) <= micro_batch for rank in assignment.ranks for micro in rank)
    loads = [sum(costs[list(micro)].max() * len(micro) for micro in rank if micro) for rank in assignment.ranks]
    assert assignment.loads == pytest.approx(loads)
    if speed is None:
        assert assignment.micro_batches <= max(1, -(-len(costs) // (ranks * micro_batch)))


@given(st.lists(st.integers(1, 100), max_size=60).map(np.array), speeds)
def test_segments(lengths, ranks_speed):
    ranks, speed = ranks_speed
    costs = lengths * (1 + 0.01 * lengths)
    assignment = assign_segments(costs, lengths, ranks, capacity=100, speed=speed)
    check_complete(assignment, len(lengths), ranks)
    assert all(lengths[list(micro)].sum() <= 100 for rank in assignment.ranks for micro in rank if micro)
    assert assignment.loads == pytest.approx(
        [sum(costs[list(m)].sum() for m in rank if m) for rank in assignment.ranks]
    )


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), max_size=20), speeds)
def test_packs_whole_or_repacked(packs, ranks_speed):
    ranks, speed = ranks_speed
    lengths = np.array([length for pack in packs for length in pack], dtype=int)
    assignment = assign_packs([len(p) for p in packs], lengths, lengths, ranks, capacity=90, speed=speed)
    check_complete(assignment, len(lengths), ranks)
    assert all(lengths[list(micro)].sum() <= 90 for rank in assignment.ranks for micro in rank if micro)
    assert assignment.loads == pytest.approx(
        [sum(lengths[list(m)].sum() for m in rank if m) for rank in assignment.ranks]
    )


@given(st.lists(st.integers(1, 100), max_size=60).map(np.array), speeds, st.integers(1, 9))
def test_without_lockstep(lengths, ranks_speed, micro_batch):
    """Each item once as well; with ranks of equal speed nothing changes."""
    ranks, speed = ranks_speed
    costs = lengths * (1 + 0.01 * lengths)
    sizes = [1] * len(lengths)
    for free, aligned in (
        [assign(costs, ranks, micro_batch=micro_batch, speed=speed, lockstep=lockstep) for lockstep in (False, True)],
        [
            assign_segments(costs, lengths, ranks, capacity=100, speed=speed, lockstep=lockstep)
            for lockstep in (False, True)
        ],
        [
            assign_packs(sizes, costs, lengths, ranks, capacity=100, speed=speed, lockstep=lockstep)
            for lockstep in (False, True)
        ],
    ):
        check_complete(free, len(lengths), ranks)
        if speed is None:
            assert free.ranks == aligned.ranks


def test_a_slower_rank_gets_smaller_micro_batches_in_lockstep_and_fewer_otherwise():
    costs = np.ones(24)
    aligned, free = (assign(costs, 2, micro_batch=4, speed=[1.0, 0.5], lockstep=lockstep) for lockstep in (True, False))
    assert [[len(micro) for micro in rank] for rank in aligned.ranks] == [[4] * 4, [2] * 4]
    assert [[len(micro) for micro in rank] for rank in free.ranks] == [[4] * 4, [4, 4, 0, 0]]
    lengths = np.full(24, 25)
    aligned, free = (
        assign_segments(costs, lengths, 2, capacity=100, speed=[1.0, 0.5], lockstep=lockstep)
        for lockstep in (True, False)
    )
    assert [[len(micro) for micro in rank] for rank in aligned.ranks] == [[4] * 4, [2] * 4]
    assert [[len(micro) for micro in rank] for rank in free.ranks] == [[4] * 4, [4, 4, 0, 0]]


@given(costs_lists, st.integers(1, 9), st.integers(1, 20))
def test_evaluation(costs, ranks, micro_batch):
    assignment = assign_evaluation(costs, ranks, micro_batch)
    check_complete(assignment, len(costs), ranks)
    sizes = [len(micro) for rank in assignment.ranks for micro in rank if micro]
    assert sum(size < micro_batch for size in sizes) <= 1  # full micro-batches but one
    assert assignment.micro_batches == max(1, -(-len(sizes) // ranks))


@given(costs_lists, st.lists(st.floats(0.1, 2), min_size=1, max_size=9), st.integers(1, 20))
def test_evaluation_by_speed(costs, speed, micro_batch):
    assignment = assign_evaluation(costs, len(speed), micro_batch, speed=speed)
    assert {len(rank) for rank in assignment.ranks} == {assignment.micro_batches}
    assert sorted(i for rank in assignment.ranks for micro in rank for i in micro) == list(range(len(costs)))


def test_dummies_of_a_slow_rank_are_spread_between_its_micro_batches():
    assignment = assign_evaluation(np.ones(18), 2, 2, speed=[1.0, 0.5])
    assert [[len(micro) for micro in rank] for rank in assignment.ranks] == [[2] * 6, [2, 0, 2, 0, 2, 0]]


@given(st.lists(st.floats(0.05, 3), min_size=1, max_size=9), st.floats(1, 1000), st.floats(0, 500))
def test_shares_by_speed_end_together(speed, total, overhead):
    speeds = np.array(speed)
    shares = np.array(work_shares(speed, total, overhead))
    assert shares.max() == 1.0
    work = shares * total / shares.sum()
    end = ((overhead + work) / speeds)[shares > 1e-3]
    assert end == pytest.approx(end[0], rel=0.1)
    late = overhead / speeds[shares <= 1e-3]  # too slow to take a share
    assert (late > end[0] * 0.9).all()


def test_overhead_moves_work_to_the_faster_rank():
    assert work_shares([1.0, 0.5], 90, 0) == [1.0, 0.5]
    assert work_shares([1.0, 0.5], 90, 15) == pytest.approx([1.0, 25 / 65])
    assert work_shares([1.0, 0.5], 90, 200) == [1.0, 1e-3]


def test_an_assignment_of_eight_packs():
    """Two packs each, the costliest with the cheapest."""
    assignment = assign([8, 7, 6, 5, 4, 3, 2, 1], 4)
    assert assignment.ranks == (((0,), (7,)), ((1,), (6,)), ((2,), (5,)), ((3,), (4,)))
    assert assignment.imbalance == 1.0


def test_fewer_items_than_ranks_leave_dummies():
    assignment = assign([5.0, 3.0], 4)
    assert assignment.ranks == (((0,),), ((1,),), ((),), ((),))
    assert assign([], 3).ranks == (((),), ((),), ((),))


def test_larger_micro_batches_balance_padded_work():
    """One long sentence and many short: the rank with the long one gets fewer, which full micro-batches prevent."""
    costs = [40.0] + [4.0] * 31
    assert assign(costs, 2, micro_batch=16).imbalance > 1.5
    roomy = assign(costs, 2, micro_batch=32)
    assert roomy.imbalance < 1.2 and roomy.loads.max() < 130


def test_slow_ranks_get_less():
    assignment = assign(np.ones(40), 3, speed=[1.0, 1.0, 0.5])
    assert assignment.loads.tolist() == [16, 16, 8]
    padded = assign(np.ones(40), 3, micro_batch=20, speed=[2.0, 2.0, 1.0])
    assert padded.loads.tolist() == [16, 16, 8]
    assert padded.micro_batches == 1
    assert assign(np.linspace(1, 3, 40), 3, speed=[1.0, 1.0, 0.5]).imbalance < 1.05


def test_packs_that_ranks_cannot_share_are_repacked():
    """Two full packs of short examples on four ranks: without repacking, half of the ranks would idle."""
    assignment = assign_packs([10, 10], np.ones(20), np.ones(20, dtype=int), 4, capacity=10)
    assert assignment.loads.tolist() == [5, 5, 5, 5]
    kept = assign_packs([10, 10], np.ones(20), np.ones(20, dtype=int), 2, capacity=10)
    assert kept.ranks == ((tuple(range(10)),), (tuple(range(10, 20)),))


def test_invalid_arguments_are_reported():
    with pytest.raises(UserError, match="2 rank speeds for 3 ranks"):
        assign([1.0], 3, speed=[1, 1])
    with pytest.raises(UserError, match="above 0"):
        assign([1.0], 2, speed=[1, 0])
    with pytest.raises(UserError, match="11 tokens do not fit a micro-batch of 10"):
        assign_segments([1.0], [11], 2, capacity=10)
