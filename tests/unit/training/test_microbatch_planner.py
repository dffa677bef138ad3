"""Assignment in the loop: each example of a step exactly once, whatever the packing; speeds given or measured."""

from types import SimpleNamespace

import numpy as np
import pytest

from finetune.data.order.cost import CostModel
from finetune.recipe.data import DataSection
from finetune.training.microbatch_planner import MicroBatchPlanner, flat
from finetune.training.rank_speed import RankSpeedEstimator
from finetune.training.steps import ScheduledSteps

LENGTHS = np.random.default_rng(0).integers(3, 60, size=97)


def make(packing, *, capacity=64, micro_batch=4, num_ranks=3, lockstep=True):
    planner = MicroBatchPlanner(
        LENGTHS,
        CostModel(1.0, 0.01),
        ranks=num_ranks,
        micro_batch=micro_batch,
        packing=packing,
        capacity=capacity,
        lockstep=lockstep,
    )
    recipe = SimpleNamespace(
        data=DataSection(train="x.jsonl", packing=packing), seed=1, training=SimpleNamespace(global_batch=16)
    )
    return planner, planner.schedule(recipe, 4 if packing == "none" else None)


def session(num_ranks=3, rates=None):
    return SimpleNamespace(
        world_size=num_ranks,
        replicas=num_ranks,
        replica_size=1,
        all_gather=lambda rate: rates or [rate],
    )


@pytest.mark.parametrize("packing", ["none", "padding_free", "packed"])
@pytest.mark.parametrize("speed", [None, [1.0, 1.0, 0.5]])
def test_every_example_of_an_epoch_once_and_no_micro_batch_above_its_limit(packing, speed):
    planner, schedule = make(packing)
    seen = []
    for index in range(schedule.steps_per_epoch):
        step = schedule.step(index)
        assignment, examples = planner.assign(step, speed), flat(step)
        for rank in assignment.ranks:
            for micro in rank:
                chosen = [examples[position] for position in micro]
                seen += chosen
                if packing == "none":
                    assert len(micro) <= 4
                else:
                    assert LENGTHS[chosen].sum() <= 64
    assert sorted(seen) == list(range(97))


@pytest.mark.parametrize("packing", ["none", "padding_free", "packed"])
def test_what_a_step_trains_on_does_not_know_the_ranks(packing):
    steps = []
    for num_ranks in (1, 2, 5):
        _, schedule = make(packing, num_ranks=num_ranks, micro_batch=num_ranks)
        steps.append([sorted(flat(schedule.step(index))) for index in range(schedule.steps_per_epoch)])
    assert steps[0] == steps[1] == steps[2]


def test_without_lockstep_a_rank_leaves_its_dummies_out_but_for_one():
    rank_speed = RankSpeedEstimator("equal", session(8), lookahead=0)
    kept, free = [], []
    for found, lockstep in ((kept, True), (free, False)):
        planner, schedule = make("none", num_ranks=8, micro_batch=4, lockstep=lockstep)
        last = schedule.steps_per_epoch - 1  # one example is left for eight ranks
        for rank in range(8):
            source = ScheduledSteps(schedule, planner, rank_speed, replica=rank, total_steps=last + 1)
            found.append(list(source.steps(last)))
    assert {len(steps[0].micro_batches) for steps in kept} == {len(kept[0][0].micro_batches)}
    assert all(steps[0].micro_batches == ((),) or () not in steps[0].micro_batches for steps in free)


def test_half_the_speed_gets_about_half_the_cost():
    planner, schedule = make("padding_free", num_ranks=2)
    assignment = planner.assign(schedule.step(0), [1.0, 0.5])
    assert 0.35 < assignment.loads[1] / assignment.loads[0] < 0.65


def measured(rank_speed, own_seconds, *, cost=40.0, forward_seconds=1.0):
    """Feed an estimator its steps; what it reported."""
    result = SimpleNamespace(forward_pass=SimpleNamespace(read=lambda: forward_seconds))
    return [
        rank_speed.note(step, cost, result, own_seconds)
        for step in range(RankSpeedEstimator.WARM + RankSpeedEstimator.MEASURED)
    ]


def test_what_the_passes_leave_over_is_overhead():
    """Both ranks do 40 cost in three seconds and as much again in whole; the second takes twice as long for all."""
    rank_speed = RankSpeedEstimator("auto", session(2, rates=[(40.0, 3.0, 6.0), (40.0, 6.0, 12.0)]), lookahead=0)
    measured(rank_speed, 6.0)
    assert (rank_speed.speeds, rank_speed.overhead) == ([1.0, 0.5], pytest.approx(40.0))


def test_a_pass_more_is_no_overhead():
    """With gradient checkpointing four forward passes take what three and a third of overhead would."""
    results = []
    for passes in (3.0, 4.0):
        group = session(2)
        group.all_gather = lambda own: [own, own]
        rank_speed = RankSpeedEstimator("auto", group, lookahead=0, passes=passes)
        measured(rank_speed, 4.0)
        results.append(rank_speed.overhead)
    assert results == [pytest.approx(40.0 / 3), 0.0]


def test_a_rank_that_waits_for_a_loader_only_is_slower_than_its_passes():
    """The same passes, but twice as long in whole: the speed counts, not the passes."""
    rank_speed = RankSpeedEstimator("auto", session(2, rates=[(40.0, 3.0, 3.0), (40.0, 3.0, 6.0)]), lookahead=0)
    measured(rank_speed, 3.0)
    assert rank_speed.speeds == [1.0, 0.5]


def test_a_rank_that_cannot_be_measured_leaves_the_shares_equal():
    rank_speed = RankSpeedEstimator("auto", session(2, rates=[(40.0, 3.0, 6.0), None]), lookahead=0)
    assert "equal shares" in measured(rank_speed, None)[-1]
    assert rank_speed.at(100) is None
    assert not rank_speed.measuring


def test_a_slow_rank_gets_less_where_the_update_takes_its_time():
    planner, schedule = make("padding_free", num_ranks=2)
    step = schedule.step(0)
    total = planner.assign(step, None).loads.sum()
    plain, wary = (planner.assign(step, [1.0, 0.5], overhead=overhead).loads for overhead in (0.0, total / 6))
    assert plain[1] / total == pytest.approx(1 / 3, abs=0.08)
    assert wary[1] / total == pytest.approx(5 / 18, abs=0.08)
    assert wary[1] < plain[1]


def test_measured_speeds_come_into_force_after_what_is_already_fetched():
    rank_speed = RankSpeedEstimator("auto", session(2, rates=[(10.0, 3.0, 3.0), (10.0, 6.0, 6.0)]), lookahead=3)
    known = measured(rank_speed, 3.0)
    assert [bool(told) for told in known] == [False] * (len(known) - 1) + [True]
    assert rank_speed.speeds == [1.0, 0.5]
    assert rank_speed.at(len(known) + 2) is None
    assert rank_speed.at(len(known) + 3) == [1.0, 0.5]
    assert RankSpeedEstimator([1.0, 0.5], session(2), lookahead=0).at(0) == [1.0, 0.5]


def watched(rank_speed, first, *, cost=40.0, forward_seconds=1.0):
    """Feed an estimator that watches one stretch of steps; what it reported."""
    result = SimpleNamespace(forward_pass=SimpleNamespace(read=lambda: forward_seconds))
    steps = range(first, first + RankSpeedEstimator.WATCHED)
    return [told for step in steps if (told := rank_speed.note(step, cost, result, None))], steps[-1] + 1


def test_a_rank_that_slows_down_later_gets_less_and_people_hear_of_it():
    group = session(2)
    group.all_gather = lambda own: [own, own]
    rank_speed = RankSpeedEstimator("auto", group, lookahead=5)
    measured(rank_speed, 3.0)
    assert rank_speed.watching and rank_speed.speeds == [1.0, 1.0]
    group.all_gather = lambda own: [own, own / 2]  # the second takes twice as long from now on
    told, step = watched(rank_speed, 10)
    assert rank_speed.speeds == [1.0, pytest.approx(0.5**RankSpeedEstimator.SMOOTHING, abs=1e-3)]
    assert told == [f"ranks measured again: relative speeds {rank_speed.speeds}"]
    for _ in range(15):
        later, step = watched(rank_speed, step)
        told += later
    assert rank_speed.speeds == [1.0, pytest.approx(0.5, abs=0.01)]
    assert len(told) <= 3  # not every time


def test_what_is_fetched_ahead_keeps_the_speeds_that_it_was_assigned_by():
    group = session(2)
    group.all_gather = lambda own: [own, own]
    rank_speed = RankSpeedEstimator("auto", group, lookahead=17)  # further ahead than a stretch is long
    measured(rank_speed, 3.0)
    step = 10
    for stretch in range(4):
        assignment = {ahead: rank_speed.at(ahead) for ahead in range(step, step + RankSpeedEstimator.WATCHED + 17)}
        group.all_gather = lambda own, stretch=stretch: [own, own / (1 + stretch)]
        _, step = watched(rank_speed, step)
        assert {ahead: rank_speed.at(ahead) for ahead in assignment} == assignment
        assert rank_speed.at(step + 17) == rank_speed.speeds


def test_a_rank_without_work_keeps_its_speed():
    group = session(2)
    group.all_gather = lambda own: [own, own]
    rank_speed = RankSpeedEstimator("auto", group, lookahead=0)
    measured(rank_speed, 3.0)
    group.all_gather = lambda own: [own, float("nan")]
    watched(rank_speed, 10, forward_seconds=0.5)
    assert rank_speed.speeds == [1.0, pytest.approx(0.5**RankSpeedEstimator.SMOOTHING, abs=1e-3)]


def test_under_zero_3_forward_passes_say_nothing():
    rank_speed = RankSpeedEstimator(
        "auto", session(2, rates=[(40.0, 3.0, 3.0), (40.0, 3.0, 6.0)]), lookahead=0, shards_weights=True
    )
    measured(rank_speed, 3.0)
    assert rank_speed.speeds == [1.0, 0.5]
    assert not rank_speed.watching
