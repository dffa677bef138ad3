"""Proves that a merged adapter gives the adapter's outputs after saving and loading, where weights are tied too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetune.errors import UserError
from finetune.models.adapters import add_adapter, save_adapter
from finetune.models.inputs import Known
from finetune.models.merging import check_equal, compare, merge, outputs_of, random_inputs
from finetune.recipe.model import AdapterSection

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
BART = {
    **{"vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64},
    **{
        f"{part}_{name}": 2 if name == "attention_heads" else 16
        for part in ("encoder", "decoder")
        for name in ("attention_heads", "ffn_dim")
    },
}


def causal(tied: bool = True) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, tie_word_embeddings=tied))


def t5() -> Any:
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))


def bart() -> Any:
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**BART))


def reward() -> Any:
    config = transformers.LlamaConfig(**SMALL, num_labels=1, pad_token_id=0)
    return transformers.LlamaForSequenceClassification(config)


def adapted(
    base: Any, seed: int = 1, heads: tuple[str, ...] = (), new_tokens: tuple[int, ...] = (), **section: Any
) -> Any:
    """A peft model with an adapter that has learned something: every trained weight is moved."""
    model: Any = add_adapter(base, AdapterSection(rank=2, **section), None, heads, seed=seed, new_tokens=new_tokens)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=draw) * 0.3)
    return model


def merged_outputs(model: Any, folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor], Any]:
    """Outputs of the adapter; of the merged model, loaded from what was written; that model."""
    inputs = random_inputs(model)
    expected = outputs_of(model, inputs)
    merged = merge(model)
    merged.save_pretrained(folder)
    loaded = type(merged).from_pretrained(folder)
    return expected, outputs_of(loaded, inputs), loaded


def assert_same(expected: list[torch.Tensor], found: list[torch.Tensor]) -> None:
    comparison = compare(expected, found, torch.float32)
    assert comparison.difference < 1e-4 * comparison.scale, comparison


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head", "q_proj"], ["q_proj"]], ids="+".join
)
def test_every_target_merges(kind: str, tied: bool, targets: list[str], tmp_path: Path) -> None:
    model = adapted(causal(tied), kind=kind, targets=targets)
    expected, found, loaded = merged_outputs(model, tmp_path)
    assert_same(expected, found)
    assert loaded.config.tie_word_embeddings is (tied and targets == ["q_proj"])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]], ids="+".join)
@pytest.mark.parametrize("new_tokens", [(), (37, 38)], ids=["", "new tokens"])
def test_whole_embeddings_merge_with_new_tokens(
    tied: bool, saved: list[str], new_tokens: tuple[int, ...], tmp_path: Path
) -> None:
    model = adapted(causal(tied), save_modules=saved, new_tokens=new_tokens)
    save_adapter(model, tmp_path / "adapter")
    expected, found, _ = merged_outputs(model, tmp_path / "merged")
    assert_same(expected, found)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("saved", [[], ["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]], ids="+".join)
def test_new_rows_are_trained_everywhere_and_peft_loads_them(tied: bool, saved: list[str], tmp_path: Path) -> None:
    from peft import PeftModel

    base = causal(tied)
    state = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = adapted(base, save_modules=saved, new_tokens=(37, 38))
    before, after = state["lm_head.weight"], merge(adapted(_copy(state, tied), save_modules=saved, new_tokens=(37, 38)))
    for weight in (after.get_input_embeddings().weight, after.get_output_embeddings().weight):
        assert (weight[37:39] != before[37:39]).any(dim=1).all() or not tied
    expected = outputs_of(model, random_inputs(model))
    save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(_copy(state, tied), str(tmp_path))
    assert torch.allclose(outputs_of(loaded, random_inputs(loaded))[0], expected[0], atol=1e-5)


def _copy(state: dict[str, torch.Tensor], tied: bool) -> Any:
    model = causal(tied)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("make", [t5, bart])
@pytest.mark.parametrize(
    "targets", [["lm_head"], ["embed_tokens"], ["shared"], ["embed_tokens", "lm_head"], ["q", "q_proj"]], ids="+".join
)
def test_encoder_decoders_merge(make: Any, targets: list[str], tmp_path: Path) -> None:
    base = make()
    targets = [name for name in targets if any(other.endswith(name) for other, _ in base.named_modules())]
    expected, found, _ = merged_outputs(adapted(base, targets=targets), tmp_path)
    assert_same(expected, found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rounding_of_half_precision_is_no_difference_but_a_lost_adapter_is(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = adapted(causal().to(dtype), targets=["embed_tokens", "q_proj"])
    with model.disable_adapter():
        bare = outputs_of(model, random_inputs(model))
    expected, found, loaded = merged_outputs(model, tmp_path)
    assert loaded.dtype == dtype and compare(expected, found, dtype).equal
    assert not compare(expected, bare, dtype).equal


def test_a_model_of_few_positions_is_compared_within_them() -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, max_position_embeddings=16))
    assert random_inputs(model)["input_ids"].shape == (4, 8)
    known = Known(lambda text: {"input_ids": [1] * len(text)}, texts=["long enough", "cut"])
    assert len(random_inputs(model, known)["input_ids"]) == 5


def test_heads_merge(tmp_path: Path) -> None:
    expected, found, _ = merged_outputs(
        adapted(reward(), heads=("score",), targets=["q_proj", "embed_tokens"]), tmp_path
    )
    assert_same(expected, found)


def test_an_adapter_on_embeddings_with_new_rows_is_refused_with_both_keys() -> None:
    with pytest.raises(UserError, match=r"adapter\.targets.*model\.new_tokens") as caught:
        adapted(causal(), targets=["embed_tokens"], new_tokens=(37,))
    assert "adapter.save_modules" in caught.value.remedy


def test_a_difference_is_an_error_with_its_size() -> None:
    good, bad = [torch.ones(4, 3)], [torch.ones(4, 3) * 1.5]
    assert "4 rows, largest difference 0 " in str(compare(good, good, torch.float32))
    check_equal(compare(good, good, torch.float32), "there")
    for wrong in (bad, [torch.full((4, 3), torch.nan)]):
        with pytest.raises(UserError, match="does not give the outputs of the adapter: 4 rows"):
            check_equal(compare(good, wrong, torch.float32), "there")
