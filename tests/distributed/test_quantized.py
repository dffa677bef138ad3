"""Proves that an adapter on a base of 4 or 8 bits trains to the same losses on any ranks, with evaluations between."""

import json
import sys

import pytest
import torch

from finetune.errors import UserError
from finetune.models.adapter_source import adapter_of
from finetune.models.adapters import add_adapter, save_adapter
from finetune.models.config import load_config
from finetune.models.continuing import continue_adapter, write_merged
from finetune.models.load import load_model
from finetune.models.quantized import stored_bytes
from finetune.recipe.card import ModelSpec
from finetune.recipe.model import AdapterSection, ModelSection
from tests.distributed.toy import open_toy, tiny_llama, train_toy

pytest.importorskip("bitsandbytes", reason="pip install 'finetune[quantized]'")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(tie_word_embeddings=False).save_pretrained(folder)
    return str(folder)


def load(base, quantization):
    from transformers import AutoModelForCausalLM

    model = ModelSection(source=base, quantization=quantization)
    return load_model(AutoModelForCausalLM, model, load_config(model), dtype=torch.float32, seed=1)[0]


def with_adapter(base, quantization):
    return add_adapter(load(base, quantization), AdapterSection(rank=4, alpha=64), "CAUSAL_LM", [], seed=1)


def trained(base, quantization, config, folder=None):
    engine, batch = open_toy(config, build=lambda: with_adapter(base, quantization))
    losses, _ = train_toy(engine, batch, range(3))
    engine.model.eval()
    with torch.no_grad():  # bitsandbytes would lay 4-bit weights out for inference here
        engine.model(input_ids=torch.ones(1, 4, dtype=torch.long))
    engine.model.train()
    losses += train_toy(engine, batch, range(3, 6))[0]
    if folder and engine.session.is_main:
        save_adapter(engine.module, folder)
    return losses


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_losses_do_not_know_the_ranks(ranks, base, quantization):
    pool = ranks.options(open_group=False)
    (alone,) = pool.run(1, trained, base, quantization, "none")
    tolerance = 1e-5 if quantization == "4bit" else 1e-3  # 8 bits: products are rounded to 16
    for config in ("none", "zero2"):
        one, other = pool.run(2, trained, base, quantization, config)
        assert one == other
        assert one == pytest.approx(alone, rel=tolerance)
    assert len(set(alone)) == 6


def test_the_body_is_packed_and_the_head_is_whole(base):
    whole, packed = load(base, "none"), load(base, "4bit")
    linear = sum(w.numel() for name, w in whole.named_parameters() if "proj" in name)
    for model in (whole, packed):
        model.requires_grad_(False)
    saved = stored_bytes(whole) - stored_bytes(packed)
    assert saved == linear * 4 - linear // 2
    assert torch.equal(whole.lm_head.weight, packed.lm_head.weight)


def test_the_adapter_goes_into_the_whole_weights(ranks, base, tmp_path):
    from transformers import AutoModelForCausalLM

    ranks.options(open_group=False).run(1, trained, base, "4bit", "none", tmp_path / "adapter")
    adapter = ModelSection(source=str(tmp_path / "adapter"))
    write_merged(ModelSpec("AutoModelForCausalLM"), adapter, adapter_of(adapter), tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    merged, plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), load(base, "none")
    change = merged.model.layers[0].mlp.up_proj.weight - plain.model.layers[0].mlp.up_proj.weight
    assert 0 < torch.linalg.matrix_rank(change) <= 4


def test_an_adapter_of_a_quantized_base_is_continued_on_one(ranks, base, tmp_path):
    ranks.options(open_group=False).run(1, trained, base, "4bit", "none", tmp_path / "adapter")
    model = ModelSection(source=str(tmp_path / "adapter"), quantization="4bit")
    continued = continue_adapter(load(model.source, "4bit"), adapter_of(model))
    assert continued.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    assert any("lora_B" in name and weight.any() for name, weight in continued.named_parameters())
    assert load(model.source, "none").model.layers[0].mlp.up_proj.weight.dtype == torch.float32


def test_what_is_missing_is_named(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError) as caught:
        load(base, "4bit")
    assert "finetune[quantized]" in caught.value.remedy
