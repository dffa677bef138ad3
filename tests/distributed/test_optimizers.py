"""Every optimizer of the registry, and one that a test adds by a single entry: the numbers do not depend on the layout,
and a resumed training is bit for bit the one that was not interrupted.
"""

from unittest import mock

import pytest
import torch

from finetune.recipe.optimizers import OPTIMIZERS, OptimizerSpec
from finetune.recipe.training import TrainingSection
from finetune.training.checkpoint import checkpoint_bytes
from finetune.training.checkpoint_reader import load_checkpoint, open_checkpoint
from finetune.training.parameter_groups import make_optimizer
from tests.distributed import toy

ADDED = OptimizerSpec(
    "added", "torch.optim:RMSprop", "an entry that only this test has", state=("square_avg", "momentum_buffer"),
    step="host", decay="coupled L2", arguments=("epsilon", "momentum"),
)  # fmt: skip
HERE = [spec.name for spec in OPTIMIZERS.values() if spec.device != "cuda" and not spec.scales]
SAVE_AT, END = 3, 6


def training(name):
    return TrainingSection(**{**toy.TRAINING.model_dump(), "optimizer": name, "learning_rate": 1e-3})


def train_and_save(name, config, folder):
    with mock.patch.dict(OPTIMIZERS, {"added": ADDED}):
        engine, batch = toy.open_toy(config, micro_batch=1, training=training(name))
        losses, norms = toy.train_toy(engine, batch, range(SAVE_AT))
        needed = checkpoint_bytes(engine, name)
        saved = toy.save_checkpoint(engine, folder, step=SAVE_AT, training={"toy": 1}, loop={})
        written = sum(size for size, _ in saved.manifest.files.values())
        rest, _ = toy.train_toy(engine, batch, range(SAVE_AT, END))
        keys = {key for key in saved.manifest.shapes if key.startswith("model.norm.weight")}
        return saved.path, losses, rest, norms, engine.full_state_dict(), keys, (needed, written)


def resume(name, config, path):
    with mock.patch.dict(OPTIMIZERS, {"added": ADDED}):
        engine, batch = toy.open_toy(
            config, micro_batch=1, training=training(name), build=lambda: toy.tiny_llama(seed=9)
        )
        load_checkpoint(engine, open_checkpoint(path))
        losses, _ = toy.train_toy(engine, batch, range(SAVE_AT, END))
        return losses, engine.full_state_dict()


@pytest.mark.parametrize("name", [*HERE, "added"])
def test_the_layout_changes_no_number_and_a_resumed_training_goes_on(ranks, tmp_path, name):
    pool = ranks.options(open_group=False, timeout=240)
    alone = pool.run(1, train_and_save, name, "none", tmp_path / "alone")[0]
    spec = OPTIMIZERS.get(name, ADDED)
    assert alone[5] == {"model.norm.weight", *(f"model.norm.weight.{key}" for key in spec.state)}
    for config in ("none", "zero2"):
        path, losses, rest, norms, weights, keys, (needed, written) = pool.run(
            2, train_and_save, name, config, tmp_path / config
        )[0]
        assert losses + rest == pytest.approx(alone[1] + alone[2], rel=1e-5)
        assert norms == pytest.approx(alone[3], rel=1e-4)
        assert keys == alone[5]
        assert needed == pytest.approx(written, rel=0.25), "what is expected of the disk is what is written"
        again, resumed = pool.run(2, resume, name, config, path)[0]
        assert again == rest
        assert all(torch.equal(resumed[key], value) for key, value in weights.items())
        other, _ = pool.run(2, resume, name, "zero3" if config == "zero2" else "zero2", path)[0]
        assert other == pytest.approx(rest, rel=1e-5)


def steps_of(make, count=5):
    """Weights after some steps on fixed gradients."""
    torch.manual_seed(0)
    module = torch.nn.Linear(7, 5)
    optimizer = make(module)
    for _ in range(count):
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return module.state_dict()


def both_updates(name):
    options = TrainingSection(learning_rate=1e-2, weight_decay=0.1, epsilon=1e-6)
    return [
        steps_of(lambda module, one=one: make_optimizer(module, options, one))
        for one in (name, OPTIMIZERS[name].same_update)
    ]


@pytest.mark.parametrize("name", [name for name in HERE if OPTIMIZERS[name].same_update])
def test_the_same_update_is_the_same(ranks, name):
    """What stands in for DeepSpeed's kernels in the plain loop of `finetune verify`."""
    ((ours, theirs),) = ranks.run(1, both_updates, name)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6)
    assert sum(bool(OPTIMIZERS[name].same_update) for name in HERE) == 1
