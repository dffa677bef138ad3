"""Moments in 8 bits: what they cost in exactness and take in memory, and that a checkpoint keeps codes and scales, so that a
training goes on bit for bit, on any number of ranks that hold whole parameters.
"""

import pytest
import torch

from finetune.recipe.optimizers import BLOCK, OPTIMIZERS
from finetune.recipe.training import TrainingSection
from finetune.training.checkpoint import checkpoint_bytes
from finetune.training.checkpoint_reader import load_checkpoint, open_checkpoint
from tests.distributed import toy

NAME, SAVE_AT, END = "adamw_8bit", 3, 6
EMBEDDINGS = "model.embed_tokens.weight"  # 64 x 64, the smallest number of elements that is quantized


def open_engine(name=NAME, seed=0):
    training = TrainingSection(**{**toy.TRAINING.model_dump(), "optimizer": name, "learning_rate": 1e-3})
    build = lambda: toy.tiny_llama(seed, hidden_size=64, intermediate_size=128)  # noqa: E731
    return toy.open_toy("none", micro_batch=1, training=training, build=build)


def train_and_save(folder, name=NAME):
    engine, batch = open_engine(name)
    losses, norms = toy.train_toy(engine, batch, range(SAVE_AT))
    needed = checkpoint_bytes(engine, name)
    saved = toy.save_checkpoint(engine, folder, step=SAVE_AT, training={"toy": 1}, loop={})
    written = sum(size for size, _ in saved.manifest.files.values())
    rest, _ = toy.train_toy(engine, batch, range(SAVE_AT, END))
    held = [
        shard
        for shard in engine.local_shards()
        if shard.key.split(".")[-1] in ("state1", "state2", "absmax1", "absmax2")
    ]
    sizes = {shard.key: (shard.values.dtype, shard.values.numel(), shard.values.nbytes) for shard in held}
    return saved, losses + rest, norms, engine.full_state_dict(), sizes, (needed, written)


def resume(path):
    engine, batch = open_engine(seed=9)
    load_checkpoint(engine, open_checkpoint(path))
    losses, _ = toy.train_toy(engine, batch, range(SAVE_AT, END))
    return losses, engine.full_state_dict()


def test_a_training_goes_on_bit_for_bit_and_ranks_change_nothing(ranks, tmp_path):
    pool = ranks.options(open_group=False, timeout=240)
    saved, alone, norms, weights, sizes, (needed, written) = pool.run(1, train_and_save, tmp_path / "alone")[0]
    assert sizes[f"{EMBEDDINGS}.state1"] == (torch.uint8, 64 * 64, 64 * 64)
    assert sizes[f"{EMBEDDINGS}.absmax2"] == (torch.float32, 64 * 64 // BLOCK, 4 * 64 * 64 // BLOCK)
    assert sizes["model.norm.weight.state2"] == (torch.float32, 64, 256)  # small ones are not quantized
    quantized = {key for key, (dtype, _, _) in sizes.items() if dtype == torch.uint8}
    scales = {key for key in sizes if "absmax" in key}
    assert len(quantized) == len(scales) > 10
    elements = sum(sizes[key][1] for key in quantized) / 2
    taken = sum(sizes[key][2] for key in quantized | scales) / elements
    assert taken == pytest.approx(OPTIMIZERS[NAME].state_bytes) and 2.0 < taken < 2.1
    assert needed == pytest.approx(written, rel=0.25)

    again, resumed = pool.run(1, resume, saved.path)[0]
    assert again == alone[SAVE_AT:]
    assert all(torch.equal(resumed[key], value) for key, value in weights.items())

    two = pool.run(2, train_and_save, tmp_path / "two")[0]
    assert two[1] == pytest.approx(alone, rel=1e-3) and two[2] == pytest.approx(norms, rel=1e-2)
    again, resumed = pool.run(2, resume, two[0].path)[0]
    assert again == two[1][SAVE_AT:]
    elsewhere, _ = pool.run(1, resume, two[0].path)[0]
    assert elsewhere == pytest.approx(again, rel=1e-3)


def test_the_cost_in_exactness(ranks, tmp_path):
    pool = ranks.options(open_group=False, timeout=240)
    ours, exact = (pool.run(1, train_and_save, tmp_path / name, name)[0][1] for name in (NAME, "adamw"))
    worst = max(abs(one - other) / other for one, other in zip(ours, exact, strict=True))
    assert 0 < worst < 2e-2
