"""An engine opened without an optimizer answers as the one that trained, from the same checkpoint, and holds no state."""

import pytest
import torch

from finetune.training.checkpoint_reader import load_checkpoint, open_checkpoint
from tests.distributed import toy
from tests.distributed.test_tensor_parallel import tiny

BATCH = toy.ToyTask().collate(None, [toy.ToyExamples()[index] for index in range(3)])


def logits_of(engine):
    engine.model.eval()
    with torch.no_grad():
        return engine.model(**BATCH.inputs).logits.float()


def build(seed, tensor):
    return tiny("llama untied", seed) if tensor > 1 else toy.tiny_llama(seed)


def train(folder, config, precision, tensor):
    engine, batch = toy.open_toy(config, precision=precision, tensor=tensor, build=lambda: build(0, tensor))
    toy.train_toy(engine, batch, range(3))
    saved = toy.save_checkpoint(engine, folder, step=3, training={"toy": 1}, loop={})
    return saved.path, logits_of(engine), engine.full_state_dict()


def answer(path, config, precision, tensor):
    engine, _ = toy.open_toy(config, precision=precision, tensor=tensor, build=lambda: build(9, tensor), trains=False)
    load_checkpoint(engine, open_checkpoint(path))
    logits = logits_of(engine)
    assert engine.optimizer is None
    assert engine.shards_weights == (config == "zero3")
    held = sum(getattr(p, "ds_tensor", p).numel() for p in engine.module.parameters())
    gradients = sum(parameter.grad is not None for parameter in engine.module.parameters())
    return logits, engine.full_state_dict(), held, gradients


@pytest.mark.parametrize(
    ("config", "precision", "tensor"),
    [
        ("none", "fp32", 1), ("none", "bf16", 1), ("zero1", "fp32", 1), ("zero2", "bf16", 1), ("zero3", "fp32", 1),
        ("zero3", "bf16", 1), ("zero1", "fp32", 2), ("zero1", "bf16", 2),
    ],
)  # fmt: skip
def test_it_answers_as_the_engine_that_trained(ranks, tmp_path, config, precision, tensor):
    pool = ranks.options(open_group=False, timeout=120)
    path, logits, weights = pool.run(2, train, tmp_path, config, precision, tensor)[0]
    first, second = pool.run(2, answer, path, config, precision, tensor)
    assert torch.equal(first[0], logits) and torch.equal(second[0], logits)
    assert first[1].keys() == weights.keys() and all(torch.equal(first[1][key], weights[key]) for key in weights)
    assert second[1] is None and first[3] == second[3] == 0
    total = sum(parameter.numel() for parameter in build(0, tensor).parameters())
    assert (first[2] < 0.8 * total) == (config == "zero3" or tensor > 1), (
        "weights are sharded where they are in training"
    )
