"""Packing changes nothing: losses, gradients and logits are those of the examples one by one; no example sees another."""

import inspect
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.attention import varlen

from finetune.errors import UserError
from finetune.models import segmented
from finetune.models.segmented import use_segmented_attention
from finetune.tasks.text.padding_free import concatenate_rows, split_rows

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
    inputs, borders = concatenate_rows(rows)
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
    inputs, borders = concatenate_rows(rows)
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
    inputs, borders = concatenate_rows(rows)
    assert borders == [0, 5, 22, 31, 32, 44]
    assert inputs["position_ids"][0, 4:8].tolist() == [4, 0, 1, 2]
    assert [row.tolist() for row in split_rows(inputs)] == [row["input_ids"].tolist() for row in rows]


class Kernel:
    """torch's variable-length flash attention on CUDA, by its rules on dtypes and shapes, computed by SDPA per segment.
    The signatures are those of torch 2.11 and of 2.12 and later (with what 2.13 adds).
    """

    def __init__(self):
        self.calls = 0

    def torch_2_11(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
    ):
        return self._attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)

    def torch_2_13(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
        enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
    ):  # fmt: skip
        if not enable_gqa and query.shape[1] != key.shape[1]:
            raise ValueError("Expect query and key/value to have the same number of heads")
        return self._attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)

    def _attend(self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size):
        self.calls += 1
        if query.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        if not query.dtype == key.dtype == value.dtype:
            raise RuntimeError("query and key must have the same dtype")
        if not cu_seq_q.dtype == cu_seq_k.dtype == torch.int32:
            raise RuntimeError("cu_seqlens_q must have dtype int32")
        if query.shape[-1] > 256 or query.shape[-1] % 8:  # as torch's mha_varlen_fwd checks them
            raise RuntimeError("head_size must be a multiple of 8, and at most 256")
        assert query.shape[1] % key.shape[1] == 0 and query.is_contiguous()
        borders = cu_seq_q.tolist()
        assert max_q == max_k == max(end - start for start, end in pairwise(borders)) and borders[-1] == len(query)
        left, right = window_size
        parts = []
        for start, end in pairwise(borders):
            q, k, v = (tensor[None, start:end].transpose(1, 2) for tensor in (query, key, value))
            mask = torch.ones(end - start, end - start, dtype=torch.bool)
            mask = mask.tril(right) if right >= 0 else mask
            mask = mask.triu(-left) if left >= 0 else mask
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
            parts.append(out.transpose(1, 2)[0])
        return torch.cat(parts)


def logits_and_gradients(model, rows, autocast):
    inputs, _ = concatenate_rows(rows)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        logits = model(**inputs, use_cache=False).logits
    loss_sum(logits.float(), inputs["input_ids"]).backward()
    return logits.detach().float(), {name: parameter.grad.float() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("age", ["torch_2_11", "torch_2_13"])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("family", "more"), FAMILIES)
def test_the_kernel_of_every_torch_is_called_by_its_rules_and_equals_segments(
    family, more, autocast, age, rows, monkeypatch
):
    """Under bf16 autocast (rotary embeddings leave query and key in float32) and with bf16 weights."""
    model = make(family, **more).to(torch.float32 if autocast else torch.bfloat16)
    use_segmented_attention(model)
    expected, expected_gradients = logits_and_gradients(model, rows, autocast)
    kernel = Kernel()
    monkeypatch.setattr(varlen, "varlen_attn", getattr(kernel, age))
    monkeypatch.setattr(segmented, "_has_ampere", lambda device: True)
    found, gradients = logits_and_gradients(model, rows, autocast)
    assert kernel.calls == model.config.num_hidden_layers
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    for name, gradient in gradients.items():
        wanted = expected_gradients[name]
        assert (gradient - wanted).norm() <= 0.03 * wanted.norm() + 1e-3, name


def test_what_the_kernel_does_not_support_goes_by_segments(rows, monkeypatch):
    kernel = Kernel()
    monkeypatch.setattr(varlen, "varlen_attn", kernel.torch_2_13)
    monkeypatch.setattr(segmented, "_has_ampere", lambda device: True)
    for model in (make("Llama"), *(make("Llama", head_dim=size).to(torch.bfloat16) for size in (320, 20))):
        use_segmented_attention(model)
        logits_and_gradients(model, rows, autocast=False)
    assert kernel.calls == 0


@pytest.mark.parametrize("lengths", [[12, 12, 12], [9]])
@pytest.mark.parametrize(("family", "more"), FAMILIES)
def test_equal_segments_are_a_batch_for_the_kernels_of_batches(family, more, lengths, monkeypatch):
    """A window that hides something needs the other kernel."""
    model = make(family, **more).to(torch.bfloat16)
    use_segmented_attention(model)
    alike = [{"input_ids": (torch.arange(length) * 7 % 50).numpy()} for length in lengths]
    expected, expected_gradients = logits_and_gradients(model, alike, autocast=False)
    kernel = Kernel()
    monkeypatch.setattr(varlen, "varlen_attn", kernel.torch_2_11)
    monkeypatch.setattr(segmented, "_has_ampere", lambda device: True)
    found, gradients = logits_and_gradients(model, alike, autocast=False)
    window = getattr(model.config, "sliding_window", None)
    assert (kernel.calls > 0) == (window is not None and window < lengths[0])
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    for name, gradient in gradients.items():
        wanted = expected_gradients[name]
        assert (gradient - wanted).norm() <= 0.03 * wanted.norm() + 1e-3, name


def test_the_installed_kernel_has_the_keywords_of_the_oldest():
    oldest, installed = (inspect.signature(f).parameters for f in (Kernel().torch_2_11, varlen.varlen_attn))
    assert set(oldest) <= set(installed)
