"""Proves that mixtures of experts, which every rank sends its tokens through as it must, neither hang nor differ at ZeRO-3."""

import pytest
import torch

from tests.distributed.toy import open_toy, train_toy

EXPERTS = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts": 8, "num_local_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "pad_token_id": 0,
}  # fmt: skip


def build(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **EXPERTS)
    return AutoModelForCausalLM._model_mapping[type(config)](config)


def trained(kind, config):
    engine, batch = open_toy(config, build=lambda: build(kind))
    return train_toy(engine, batch, range(3))[0]


@pytest.mark.parametrize("kind", ["olmoe", "qwen3_moe", "mixtral"])
def test_experts_under_zero3_are_those_of_one_process(ranks, kind):
    pool = ranks.options(open_group=False)
    (alone,) = pool.run(1, trained, kind, "none")
    assert pool.run(2, trained, kind, "zero3") == [pytest.approx(alone, rel=1e-5)] * 2
