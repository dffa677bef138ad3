"""A checkpoint knows neither ranks nor stages: saved under one layout, training goes on under any other with the same
losses and the same examples; under the same layout bit for bit.
"""

import json

import pytest
import torch

from finetune.training.checkpoint_reader import load_checkpoint, open_checkpoint
from tests.distributed import toy

SAVE_AT, END = 4, 8


def train_and_save(folder, config, micro_batch="auto", precision="fp32"):
    engine, batch = toy.open_toy(config, micro_batch=micro_batch, precision=precision)
    toy.train_toy(engine, batch, range(SAVE_AT))
    saved = toy.save_checkpoint(engine, folder, step=SAVE_AT, training={"task": "toy"}, loop={"step": SAVE_AT})
    losses, _ = toy.train_toy(engine, batch, range(SAVE_AT, END))
    return saved.path, losses, weights(engine)


def load_and_train(path, config, micro_batch="auto", precision="fp32"):
    # Other weights than the saved run began with: nothing may come from the seed.
    engine, batch = toy.open_toy(
        config, micro_batch=micro_batch, precision=precision, build=lambda: toy.tiny_llama(seed=9)
    )
    load_checkpoint(engine, open_checkpoint(path))
    losses, _ = toy.train_toy(engine, batch, range(SAVE_AT, END))
    return path, losses, weights(engine)


def save_train_and_load(folder, config):
    """Weights and losses where the checkpoint is saved, and once it is loaded again after more steps."""
    engine, batch = toy.open_toy(config)
    toy.train_toy(engine, batch, range(SAVE_AT))
    saved = toy.save_checkpoint(engine, folder, step=SAVE_AT, training={"task": "toy"}, loop={"step": SAVE_AT})
    before = weights(engine), forward_losses(engine)
    toy.train_toy(engine, batch, range(SAVE_AT, END))
    trained = forward_losses(engine)
    load_checkpoint(engine, saved)
    losses = forward_losses(engine)
    return before, trained, (weights(engine), losses)


def forward_losses(engine):
    """Of ten examples, without gradients."""
    task, examples = toy.ToyTask(), toy.ToyExamples()
    batches = [task.collate(None, [examples[index]]) for index in range(10)]
    with torch.no_grad():
        return [float(task.loss_sum(None, task.forward(engine.model, batch), batch)) for batch in batches]


def weights(engine):
    state = engine.full_state_dict()
    return {name: tensor.float() for name, tensor in state.items()} if state else None


@pytest.fixture(scope="module")
def saved(ranks, tmp_path_factory):
    """What each layout saved, and how it went on; saved once a layout."""
    done = {}

    def save(world, config):
        if (world, config) not in done:
            folder = tmp_path_factory.mktemp(f"{config}-{world}")
            pool = ranks.options(open_group=False, timeout=120)
            done[world, config] = pool.run(world, train_and_save, folder, config)[0]
        return done[world, config]

    return save


@pytest.mark.parametrize(("world", "config"), [(1, "none"), (2, "none"), (2, "zero1"), (2, "zero2"), (2, "zero3")])
def test_the_same_layout_goes_on_bit_for_bit(ranks, saved, world, config):
    path, losses, after = saved(world, config)
    resumed = ranks.options(open_group=False, timeout=120).run(world, load_and_train, path, config)[0]
    assert resumed[1] == losses
    assert all(torch.equal(after[name], resumed[2][name]) for name in after)


@pytest.mark.parametrize(("world", "config"), [(1, "none"), (2, "none"), (2, "zero1"), (2, "zero2"), (2, "zero3")])
def test_weights_loaded_after_more_steps_compute_and_are_exported(ranks, tmp_path, world, config):
    """As those of the best checkpoint at the end. Under stage 3, small ones were still those of the last step."""
    results = ranks.options(open_group=False, timeout=120).run(world, save_train_and_load, tmp_path, config)
    for number, ((weights_before, losses_before), trained, (loaded, losses)) in enumerate(results):
        assert losses == losses_before != trained
        if number == 0:
            assert all(torch.equal(weights_before[name], loaded[name]) for name in loaded) and len(loaded) > 10


@pytest.mark.parametrize(
    ("world", "config", "new_world", "new_config"),
    [
        (2, "zero2", 3, "zero2"), (2, "zero2", 1, "zero1"), (2, "zero3", 3, "zero3"), (2, "zero3", 1, "none"),
        (2, "none", 3, "zero3"), (3, "zero3", 2, "zero2"), (4, "zero2", 2, "zero3"), (2, "zero1", 2, "zero2_offload"),
        (2, "zero2", 2, "zero3_offload"), (2, "zero2", 2, "zero0"),
    ],
)  # fmt: skip
def test_another_layout_goes_on_with_the_same_losses(ranks, saved, world, config, new_world, new_config):
    path, losses, _ = saved(world, config)
    resumed = ranks.options(open_group=False, timeout=120).run(new_world, load_and_train, path, new_config)[0]
    assert resumed[1] == pytest.approx(losses, rel=1e-5)


def test_bf16_goes_on_under_another_stage(ranks, tmp_path):
    pool = ranks.options(open_group=False, timeout=120)
    path, losses, after = pool.run(2, train_and_save, tmp_path, "zero2", precision="bf16")[0]
    same = pool.run(2, load_and_train, path, "zero2", precision="bf16")[0]
    assert same[1] == losses
    assert all(torch.equal(after[name], same[2][name]) for name in after)
    other = pool.run(1, load_and_train, path, "zero3", precision="bf16")[0]
    assert other[1] == pytest.approx(losses, rel=3e-2)


def test_only_json_and_safetensors_are_written(saved):
    path = saved(2, "zero2")[0]
    assert sorted(file.suffix for file in path.iterdir()) == [".json", ".safetensors", ".safetensors"]
    assert json.loads((path / "manifest.json").read_text())["step"] == SAVE_AT
