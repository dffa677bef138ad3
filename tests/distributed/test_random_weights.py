"""Proves that weights drawn by name (`model.init_device: gpu`) are the same under every engine and number of ranks, and train
to the same losses. On CPU ranks, with the code that runs on GPUs.
"""

import pytest
import torch

from finetune.models.load import load_config, load_model
from finetune.recipe.model import ModelSection
from tests.distributed.toy import open_toy, train_toy

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip


def build():
    from transformers import AutoModelForCausalLM

    torch.rand(int(torch.randint(9, ())))  # whatever was drawn before
    model = ModelSection(source="llama", init="config", init_device="gpu", config=SHAPE)
    return load_model(AutoModelForCausalLM, model, load_config(model), dtype=torch.float32, seed=1)[0]


def trained(config):
    engine, batch = open_toy(config, build=build)
    state = engine.full_state_dict()
    before = {name: value.clone() for name, value in state.items()} if state else None
    return before, *train_toy(engine, batch, range(3))


def test_every_engine_and_number_of_ranks_starts_from_the_same_weights(ranks):
    pool = ranks.options(open_group=False)
    weights, losses, norms = pool.run(1, trained, "none")[0]
    assert len(weights) > 15 and len({float(weight.sum()) for weight in weights.values() if weight.dim() > 1}) > 10
    compared = 0
    for count, config in ((2, "none"), (1, "zero3"), (2, "zero2"), (2, "zero3")):
        other, other_losses, other_norms = pool.run(count, trained, config)[0]
        assert set(other) == set(weights)
        assert all(torch.equal(other[name].float(), weight.float()) for name, weight in weights.items()), (
            count,
            config,
        )
        assert other_losses == pytest.approx(losses, rel=1e-5) and other_norms == pytest.approx(norms, rel=1e-4)
        compared += 1
    assert compared == 4
