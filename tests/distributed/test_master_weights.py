"""bf16 weights with float32 masters under DistributedDataParallel train as ZeRO-1's do, are saved and resumed bit for bit, and
go on under ZeRO, and back.
"""

from unittest import mock

import pytest
import torch

from finetune.distributed.engines import master_weights
from finetune.models import accumulated_products
from finetune.models.accumulated_products import convert_linears
from finetune.training.checkpoint_reader import load_checkpoint, open_checkpoint
from tests.distributed import toy
from tests.update_rules import in_one_pass

SAVE_AT, END = 3, 6


def open_engine(config, seed=0):
    masters = config == "none"
    return toy.open_toy(
        config, micro_batch=2, precision="bf16", build=lambda: toy.tiny_llama(seed).bfloat16(), masters=masters
    )


def kept_weights(engine):
    """Shards as a checkpoint takes them: dtypes, and values of what this rank hands over."""
    shards = [shard for shard in engine.local_shards() if "." in shard.key]
    return {(shard.key, shard.start): shard.values.clone() for shard in shards}


def train_in_portions(portion):
    with mock.patch.object(master_weights, "PORTION", portion):
        engine, batch = open_engine("none")
        updates = mock.Mock(wraps=engine.optimizer.step)
        engine.optimizer.step = updates
        return toy.train_toy(engine, batch, range(END)), kept_weights(engine), updates.call_count


def train_and_save(folder, config):
    engine, batch = open_engine(config)
    before = toy.train_toy(engine, batch, range(SAVE_AT))
    saved = toy.save_checkpoint(engine, folder, step=SAVE_AT, training={"task": "toy"}, loop={"step": SAVE_AT})
    losses, _ = toy.train_toy(engine, batch, range(SAVE_AT, END))
    dtypes = {parameter.dtype for parameter in engine.module.parameters()}
    return saved.path, before, losses, kept_weights(engine), dtypes


def load_and_train(path, config):
    engine, batch = open_engine(config, seed=9)
    load_checkpoint(engine, open_checkpoint(path))
    losses, _ = toy.train_toy(engine, batch, range(SAVE_AT, END))
    return losses, kept_weights(engine)


def train_in_one_pass(folder):
    """On a rank: what `train_and_save` gives, by the stand-in for the kernels of a GPU."""
    with in_one_pass():
        return train_and_save(folder, "none")


def load_and_train_in_one_pass(path):
    with in_one_pass():
        return load_and_train(path, "none")


def train_with_products(converts):
    """On a rank: figures of the training, and gradients of weights that were added up in products."""
    engine, batch = open_engine("none")
    assert convert_linears(engine.module) == 14 if converts else True
    with mock.patch.object(accumulated_products, "_add_or_give", wraps=accumulated_products._add_or_give) as add:
        losses, norms = toy.train_toy(engine, batch, range(END))
    return losses, norms, add.call_count


@pytest.fixture(scope="module")
def saved(ranks, tmp_path_factory):
    pool = ranks.options(open_group=False, timeout=120)
    return {
        config: pool.run(2, train_and_save, tmp_path_factory.mktemp(config), config)[0] for config in ("none", "zero1")
    }


def test_losses_are_those_of_zero1_and_near_float64(saved):
    (_, (losses, norms), more, kept, dtypes), (_, (theirs, their_norms), their_more, _, _) = saved.values()
    assert dtypes == {torch.bfloat16}
    assert len(kept) > 20 and {values.dtype for values in kept.values()} == {torch.float32}
    assert any(
        torch.any(values != values.bfloat16().float()) for key, values in kept.items() if key[0].count("exp") == 0
    )
    assert losses + more == pytest.approx(theirs + their_more, rel=1e-2)
    assert norms == pytest.approx(their_norms, rel=5e-2)
    exact, _ = toy.train_reference(toy.tiny_llama(), SAVE_AT)
    assert losses == pytest.approx(exact, rel=1e-2)


def test_the_same_layout_goes_on_bit_for_bit(ranks, saved):
    path, _, losses, kept, _ = saved["none"]
    resumed, again = ranks.options(open_group=False, timeout=120).run(2, load_and_train, path, "none")[0]
    assert resumed == losses
    assert kept.keys() == again.keys() and all(torch.equal(kept[key], again[key]) for key in kept)


@pytest.mark.parametrize(("first", "then", "world"), [("none", "zero3", 2), ("zero1", "none", 1)])
def test_another_engine_goes_on(ranks, saved, first, then, world):
    path, _, losses, _, _ = saved[first]
    resumed, _ = ranks.options(open_group=False, timeout=120).run(world, load_and_train, path, then)[0]
    assert resumed == pytest.approx(losses, rel=1e-2)


def test_checkpoints_of_an_update_in_one_pass_are_those_of_the_optimizer(ranks, saved, tmp_path):
    pool = ranks.options(open_group=False, timeout=120)
    path, before, losses, kept, _ = pool.run(2, train_in_one_pass, tmp_path)[0]
    usual, (first, norms), more, wanted, _ = saved["none"]
    assert before[0] + losses == pytest.approx(first + more, rel=1e-3) and before[1] == pytest.approx(norms, rel=1e-2)
    assert kept.keys() == wanted.keys()
    again = pool.run(2, load_and_train_in_one_pass, path)[0]
    assert again[0] == losses and all(torch.equal(kept[key], again[1][key]) for key in kept)
    for ways in ((load_and_train, path, "none"), (load_and_train, path, "zero2"), (load_and_train_in_one_pass, usual)):
        resumed, _ = pool.run(1, *ways)[0]
        assert resumed == pytest.approx(more, rel=1e-2 if "zero2" in ways else 1e-3)


def test_updates_in_portions_are_those_of_all_at_once(ranks):
    pool = ranks.options(open_group=False, timeout=120)
    figures, kept, updates = pool.run(2, train_in_portions, 10**9)[0]
    in_portions, others, more = pool.run(2, train_in_portions, 3000)[0]
    assert updates == END and more > 5 * END
    assert in_portions == figures
    assert kept.keys() == others.keys() and all(torch.equal(kept[key], others[key]) for key in kept)


@pytest.mark.parametrize("world", [1, 2])
def test_gradients_added_up_in_products_train_alike(ranks, world):
    """Of two ranks, DistributedDataParallel averages those of the last micro-batch with what the others left."""
    pool = ranks.options(open_group=False, timeout=120)
    (losses, norms, calls), (others, sums, none) = (
        pool.run(world, train_with_products, way)[0] for way in (True, False)
    )
    assert calls > 2 * 14 * END / world and none == 0
    assert losses[0] == others[0]  # no gradient has been used yet
    assert losses == pytest.approx(others, rel=5e-3) and norms == pytest.approx(sums, rel=2e-2)
