"""Proves that weights drawn by name (`model.init_device: gpu`) are the same under every engine and number of ranks, and train
to the same losses. On CPU ranks, with the code that runs on GPUs.
"""

import json

import pytest
import torch

from finetune.models.config import load_config
from finetune.models.load import load_model
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


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def build_own(folder):
    """A model whose folder brings its code, with random weights."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = ModelSection(source=folder, init="config", trust_remote_code=True)
    return load_model(AutoModelForCausalLM, model, load_config(model), dtype=torch.float32, seed=1)[0]


def trained_own(config, folder):
    engine, batch = open_toy(config, build=lambda: build_own(folder))
    state = engine.full_state_dict()
    before = {name: value.clone() for name, value in state.items()} if state else None
    return before, *train_toy(engine, batch, range(3))


def test_a_model_with_code_of_its_own_starts_from_the_same_weights(ranks, tmp_path):
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, "model_type": "own", "auto_map": auto}))
    (tmp_path / "modeling_own.py").write_text(OWN_CODE)
    pool = ranks.options(open_group=False)
    weights, losses, _ = pool.run(1, trained_own, "none", str(tmp_path))[0]
    assert len(weights) > 15
    compared = 0
    for count, config in ((2, "none"), (2, "zero3")):
        other, other_losses, _ = pool.run(count, trained_own, config, str(tmp_path))[0]
        different = [name for name in weights if not torch.equal(other[name].float(), weights[name].float())]
        assert set(other) == set(weights) and not different, (count, config, different)
        assert other_losses == pytest.approx(losses, rel=1e-5)
        compared += 1
    assert compared == 2


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
