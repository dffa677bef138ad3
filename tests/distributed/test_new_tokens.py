"""Proves that new tokens get the same embeddings under every engine, train under an adapter too, and merge exactly."""

import pytest
import torch

from finetune.models.adapter_source import adapter_of
from finetune.models.adapters import add_adapter, save_adapter
from finetune.models.config import load_config
from finetune.models.continuing import write_merged
from finetune.models.load import load_model
from finetune.recipe.card import ModelSpec
from finetune.recipe.model import AdapterSection, ModelSection
from tests.distributed.toy import open_toy, tiny_llama, train_toy
from tests.ranks import RankError

NEW = [64, 65]  # the toy's tokens 1 and 2 are fed as these


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(tie_word_embeddings=request.param).save_pretrained(folder)
    return str(folder)


def build(base, adapter):
    from transformers import AutoModelForCausalLM

    model = ModelSection(source=base)
    torch.rand(int(torch.randint(9, ())))  # whatever was drawn before
    loaded, loading = load_model(
        AutoModelForCausalLM, model, load_config(model), dtype=torch.float32, seed=1, vocabulary=66
    )
    assert list(loading.grown) == NEW
    if adapter:
        section = AdapterSection(rank=2, alpha=8)
        loaded = add_adapter(loaded, section, "CAUSAL_LM", [], seed=1, new_tokens=loading.grown)
    loaded.register_forward_pre_hook(renamed, with_kwargs=True)
    return loaded


def renamed(module, args, kwargs):
    ids = kwargs["input_ids"]
    return args, {**kwargs, "input_ids": torch.where((ids == 1) | (ids == 2), ids + 63, ids)}


def trained(base, adapter, config, folder):
    engine, batch = open_toy(config, build=lambda: build(base, adapter))
    before = engine.full_state_dict(trainable_only=adapter)
    before = {name: value.clone() for name, value in before.items()} if before else None
    losses, norms = train_toy(engine, batch, range(4))
    after = engine.full_state_dict(trainable_only=adapter)
    if engine.session.is_main and adapter:
        save_adapter(engine.module, folder, state_dict=after)
    logits = None
    if engine.session.world_size == 1:
        engine.model.eval()
        logits = engine.model(input_ids=torch.tensor([[1, 5, 2]])).logits.detach()
    return losses, norms, before, after, logits


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "adapter"])
def test_every_engine_draws_and_trains_the_same_rows(ranks, base, adapter, tmp_path):
    pool = ranks.options(open_group=False)
    losses, norms, before, after, _ = pool.run(1, trained, base, adapter, "none", tmp_path)[0]
    rows = [name for name in after if "embed_tokens" in name]
    assert rows and all((after[name][-2:] != before[name][-2:]).any(dim=1).all() for name in rows)
    for config in ("none", "zero2") if adapter else ("zero2", "zero3"):
        others = pool.run(2, trained, base, adapter, config, tmp_path)[0]
        assert others[0] == pytest.approx(losses, rel=1e-5) and others[1] == pytest.approx(norms, rel=1e-4)
        assert set(others[2]) == set(before)
        for name, value in before.items():
            assert torch.allclose(others[2][name], value, atol=1e-7), (config, name)


def test_what_peft_cannot_do_is_told(ranks, base, tmp_path):
    with pytest.raises(RankError) as caught:
        ranks.options(open_group=False).run(2, trained, base, True, "zero3", tmp_path)
    assert "Set parallel.deepspeed: zero2" in str(caught.value)


def test_the_new_rows_are_in_the_merged_model(ranks, base, tmp_path):
    from transformers import AutoModelForCausalLM

    (result,) = ranks.options(open_group=False).run(1, trained, base, True, "none", tmp_path / "adapter")
    model = ModelSection(source=str(tmp_path / "adapter"))
    write_merged(ModelSpec("AutoModelForCausalLM"), model, adapter_of(model), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.get_input_embeddings().num_embeddings == 66
    logits = merged(input_ids=torch.tensor([[64, 5, 65]])).logits
    assert torch.allclose(logits, result[-1], atol=1e-5)
