"""Same recipe, same numbers: every engine on every number of ranks gives the losses of a plain float64 loop."""

import time

import pytest

from finetune.training.microbatch_planner import flat
from tests.distributed import toy

LAYOUTS = [
    (1, "none", "auto"), (2, "none", "auto"), (3, "none", 1), (2, "none", 1),
    (1, "zero2", 2), (2, "zero0", 2), (2, "zero1", "auto"), (2, "zero1", 1), (2, "zero2", "auto"), (2, "zero2", 1),
    (3, "zero2", 2), (2, "zero3", "auto"), (2, "zero3", 1), (3, "zero3", 2),
    (2, "zero2_offload", 2), (2, "zero3_offload", 2),
]  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    return toy.train_reference(toy.tiny_llama(), 8)


def run_layout(config, micro_batch, steps):
    engine, batch = toy.open_toy(config, micro_batch=micro_batch)
    seen = []
    losses, norms = toy.train_toy(engine, batch, range(steps), seen=seen)
    return type(engine.model).__name__, losses, norms, seen


@pytest.mark.parametrize(("world", "config", "micro_batch"), LAYOUTS)
def test_losses_and_norms_are_those_of_the_reference(ranks, reference, world, config, micro_batch):
    results = ranks.options(open_group=False, timeout=120).run(world, run_layout, config, micro_batch, 8)
    kind, losses, norms, _ = results[0]
    assert kind == ("DeepSpeedEngine" if config != "none" else kind)
    assert losses == pytest.approx(reference[0], rel=1e-5)
    assert norms == pytest.approx(reference[1], rel=1e-4)
    for step in range(8):  # each example of a step on exactly one rank, once
        ids = sorted(i for result in results for i in result[3][step])
        assert ids == sorted(flat(toy.toy_schedule().step(step)))


SMALL_BUCKETS = {"reduce_bucket_size": 5000, "allgather_bucket_size": 5000, "stage3_prefetch_bucket_size": 5000}


def overlapped(config, overlap):
    engine, batch = toy.open_toy(config, micro_batch=2, zero={"overlap_comm": overlap, **SMALL_BUCKETS})
    in_use = engine.optimizer.optimizer.overlap_comm if config != "zero3" else engine.model.zero_overlap_comm()
    return in_use, toy.train_toy(engine, batch, range(8))


@pytest.mark.parametrize("config", ["zero1", "zero2", "zero3"])
def test_overlapping_communication_changes_no_loss(ranks, reference, config):
    """Many small buckets, two in flight at a time: some releases of DeepSpeed gave NaN here."""
    two = ranks.options(open_group=False, timeout=120)
    (on, (losses, norms)), _ = two.run(2, overlapped, config, True)
    (off, (alone, _)), _ = two.run(2, overlapped, config, False)
    assert (on, off) == (True, False)
    assert losses == alone
    assert losses == pytest.approx(reference[0], rel=1e-5)
    assert norms == pytest.approx(reference[1], rel=1e-4)


class ClockedTask(toy.ToyTask):
    """Rank 1 is late for each step; every rank records when its forward and backward passes began."""

    LATE = 0.4

    def __init__(self, rank):
        self.rank, self.began, self.forwards, self.backwards = rank, [], [], []

    def collate(self, artifacts, examples):
        batch = super().collate(artifacts, examples)
        time.sleep(self.LATE if self.rank == 1 else 0)
        self.began.append(time.perf_counter())
        return batch

    def forward(self, model, batch):
        self.forwards.append(time.perf_counter())
        return super().forward(model, batch)


def meet_a_late_rank(config):
    engine, batch = toy.open_toy(config, micro_batch="auto")
    task = ClockedTask(engine.session.rank)
    backward = engine.backward

    def clocked(loss):
        task.backwards.append(time.perf_counter())
        backward(loss)

    engine.backward = clocked
    losses, _ = toy.train_toy(engine, batch, range(4), task=task)
    waits = [[moment - began for began, moment in zip(task.began, moments, strict=True)]
             for moments in (task.forwards, task.backwards)]  # fmt: skip
    return losses, waits


@pytest.mark.parametrize("config", ["none", "zero1"])
def test_the_first_forward_pass_does_not_wait_for_a_late_rank_and_the_backward_pass_does(ranks, reference, config):
    """The units of a step are counted while its first forward pass runs."""
    (losses, (forwards, backwards)), _ = ranks.options(open_group=False, timeout=60).run(2, meet_a_late_rank, config)
    assert losses == pytest.approx(reference[0][:4], rel=1e-5)
    assert max(forwards) < 0.5 * ClockedTask.LATE
    assert min(backwards) > 0.5 * ClockedTask.LATE


def left_while_alive():
    """An engine that outlives its process group."""
    engine, batch = toy.open_toy("none")
    losses, _ = toy.train_toy(engine, batch, range(2))
    engine.session.close()
    del engine
    return losses


def test_a_process_group_is_left_although_its_engine_still_lives(ranks):
    """torch joins gloo's threads with Python's lock held, and such a thread may need it to let go of a last tensor."""
    for _ in range(6):
        first, second = ranks.options(open_group=False, timeout=20).run(2, left_while_alive)
        assert first == second
