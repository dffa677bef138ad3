"""Pretrained weights: every engine starts from them, with dropout from the first step, and gives shared memory back."""

import os
from pathlib import Path
from unittest import mock

import pytest

from tests.e2e import tiny
from tests.e2e.conftest import MINUTES
from tests.e2e.inside import train_here
from tests.ranks import Ranks

STEPS = ("training.epochs=null", "training.steps=6", "checkpoint.every=3", "checkpoint.keep=4", "evaluation.every=6")


@pytest.fixture(scope="module")
def pretrained(workplace):
    """A recipe that begins from a folder of weights, as one of the hub would."""
    tiny.write_weights(workplace / "weights")
    evaluation = {"metrics": ["accuracy"], "best": "loss", "samples": 0}
    tiny.write_recipe(workplace, "pretrained.yaml", model={"source": "./weights"}, evaluation=evaluation)
    return "pretrained.yaml"


@pytest.fixture(scope="module")
def zero2(workers, pretrained):
    return workers.train(2, "pretrained-zero2", *STEPS, recipe=pretrained)


@pytest.mark.parametrize("stage", ["zero3", "none"])
def test_every_engine_starts_from_the_same_weights(workers, pretrained, zero2, stage):
    run = workers.train(2, f"pretrained-{stage}", *STEPS, f"parallel.deepspeed={stage}", recipe=pretrained)
    expected, found = tiny.losses(zero2), tiny.losses(run)
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert [found[step] for step in found] == pytest.approx([expected[step] for step in found], rel=1e-5)


def test_a_resumed_run_has_its_dropout_from_its_first_step(workers, pretrained, zero2):
    resume = str(zero2 / "checkpoints" / "step-00000003")
    run = workers.train(2, "pretrained-resumed", *STEPS, recipe=pretrained, resume=resume)
    expected, found = tiny.losses(zero2), tiny.losses(run)
    assert found == {step: expected[step] for step in (4, 5, 6)}


@pytest.fixture
def fresh(tmp_path, cache):
    """Ranks that have trained nothing: DeepSpeed makes its files once in a process."""
    found = Ranks(tmp_path)
    yield found.options(open_group=False, timeout=MINUTES)
    found.close()


def train_and_watch(*arguments):
    """The shared-memory files of this training, before the session gives them up and after the end."""
    from finetune.distributed import session

    seen, give_up = [], session._unlink_shared_memory

    def files():
        owner = f"{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}"
        return [file.name for file in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{owner}_*")]

    def watched(rank):
        seen.extend(files())
        give_up(rank)

    with mock.patch.object(session, "_unlink_shared_memory", watched):
        train_here(*arguments)
    return seen, files()


def test_no_run_leaves_anything_in_shared_memory(fresh, workplace, pretrained):
    run = workplace / "pretrained-watched"
    told = fresh.run(2, train_and_watch, str(workplace), pretrained, str(run), list(STEPS), "auto", {})
    assert all(before for before, _ in told), "DeepSpeed made no such file"
    assert [after for _, after in told] == [[], []]
