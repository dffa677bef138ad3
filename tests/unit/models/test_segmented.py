"""Packing changes nothing: losses, gradients and logits are those of the examples one by one; no example sees another."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from finetune.errors import UserError
from finetune.models.segmented import use_segmented_attention
from finetune.tasks.text.padding_free import pack_rows, segment_rows

LENGTHS = (5, 17, 9, 1, 12)


def make(family, **more):
    import transformers

    shape = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**shape, **more})
    return getattr(transformers, f"{family}ForCausalLM")(config)


FAMILIES = [
    ("Llama", {}), ("Qwen2", {}), ("Qwen3", {"head_dim": 8}), ("Mistral", {"sliding_window": None}),
    ("Mistral", {"sliding_window": 4}), ("Gemma", {"head_dim": 8, "num_key_value_heads": 1}),
    ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
]  # fmt: skip


@pytest.fixture
def rows():
    draw = np.random.default_rng(1)
    return [{"input_ids": draw.integers(0, 50, size=length)} for length in LENGTHS]


def loss_sum(logits, tokens):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


@pytest.mark.parametrize(("family", "more"), FAMILIES)
def test_logits_losses_and_gradients_are_those_of_single_examples(family, more, rows):
    model = make(family, **more)
    single = []
    total = torch.zeros(())
    for row in rows:
        tokens = torch.as_tensor(row["input_ids"])[None]
        logits = model(input_ids=tokens, use_cache=False).logits
        single.append(logits.detach())
        total = total + loss_sum(logits, tokens)
    total.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    use_segmented_attention(model)
    inputs, borders = pack_rows(rows)
    logits = model(**inputs, use_cache=False).logits
    packed = torch.zeros(())
    for (start, end), row, alone in zip(pairwise(borders), rows, single, strict=True):
        part = logits[:, start:end]
        torch.testing.assert_close(part, alone, rtol=1e-5, atol=1e-6)
        packed = packed + loss_sum(part, torch.as_tensor(row["input_ids"])[None])
    torch.testing.assert_close(packed, total, rtol=1e-6, atol=1e-6)
    packed.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "more"), FAMILIES)
def test_a_token_changed_changes_no_logit_of_its_neighbours(family, more, rows):
    model = make(family, **more)
    use_segmented_attention(model)
    inputs, borders = pack_rows(rows)
    with torch.no_grad():
        before = model(**inputs, use_cache=False).logits
        inputs["input_ids"][0, borders[1] + 3] += 1
        after = model(**inputs, use_cache=False).logits
    assert torch.equal(before[:, : borders[1] + 3], after[:, : borders[1] + 3])
    assert not torch.equal(before[:, borders[1] + 3 : borders[2]], after[:, borders[1] + 3 : borders[2]])
    assert torch.equal(before[:, borders[2] :], after[:, borders[2] :])


def test_padded_batches_and_generation_are_as_under_sdpa(rows):
    model = make("Llama").eval()
    width = max(LENGTHS)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for line, keep, row in zip(tokens, mask, rows, strict=True):
        line[width - len(row["input_ids"]) :] = torch.as_tensor(row["input_ids"])
        keep[width - len(row["input_ids"]) :] = 1
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(tokens, **options)
    expected_logits = model(input_ids=tokens, attention_mask=mask).logits[mask.bool()]
    use_segmented_attention(model)
    assert torch.equal(model.generate(tokens, **options), expected)
    torch.testing.assert_close(model(input_ids=tokens, attention_mask=mask).logits[mask.bool()], expected_logits)


def test_a_model_that_cannot_is_told_so_with_the_alternative():
    import transformers

    model = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    with pytest.raises(UserError, match="mamba") as told:
        use_segmented_attention(model)
    assert "data.packing: none" in told.value.remedy
    gemma = make("Gemma2", head_dim=8)
    with pytest.raises(UserError, match="caps its attention scores"):
        use_segmented_attention(gemma)


def test_rows_come_back_from_a_pack(rows):
    inputs, borders = pack_rows(rows)
    assert borders == [0, 5, 22, 31, 32, 44]
    assert inputs["position_ids"][0, 4:8].tolist() == [4, 0, 1, 2]
    assert [row.tolist() for row in segment_rows(inputs)] == [row["input_ids"].tolist() for row in rows]
