"""Proves that sequences which share their beginning have the logits and gradients of whole ones, by every kernel, with fewer
tokens in the row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn.attention import varlen

from finetune.models import segmented
from finetune.models.segmented import can_share_tokens, use_segmented_attention
from finetune.tasks.text.padding_free import concatenate_rows, split_rows
from finetune.tasks.text.shared_prefixes import share_prefixes, whole_sequences
from tests.unit.models.test_segmented import Kernel

PAIRS = [
    ([5, 6, 7, 8, 9], [5, 6, 7, 1]),
    ([3, 4], [3, 4, 5, 6]),
    ([9, 8, 7], [9, 8]),
    ([1, 2], [2, 1]),
    ([4, 4], [4, 4]),
]
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}), ("Mistral", {"sliding_window": 3}), ("Qwen3", {}), ("GPT2", {}),
]  # fmt: skip


def whole() -> dict[str, Any]:
    return concatenate_rows([{"input_ids": np.array(pair[side])} for side in (0, 1) for pair in PAIRS])[0]


def make(family: str, more: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    if family == "GPT2":
        sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 32}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=20, **sizes, **({} if family == "GPT2" else {"intermediate_size": 48, "head_dim": 8}), **more
    )
    model = getattr(transformers, f"{family}{'LMHeadModel' if family == 'GPT2' else 'ForCausalLM'}")(config).eval()
    use_segmented_attention(model)
    return model


def logits_and_gradients(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of whole sequences, and gradients of a sum over all of their tokens."""
    model.zero_grad()
    logits = whole_sequences(model(**inputs, use_cache=False).logits, inputs)
    (logits.float() * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), [weight.grad.clone() for weight in model.parameters()]


def test_the_row_holds_each_shared_token_once() -> None:
    inputs = share_prefixes(whole())
    assert inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 3, 4, 9, 8, 7, 1, 2, 4, 4, 1, 5, 6, 2, 1]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 0, 1, 0, 1, 3, 2, 3, 0, 1]]
    assert inputs["shared_again"][0].tolist() == [0, 1, 2, 5, 6, 7, 8, 12, 13]
    rows = [row.tolist() for row in split_rows(inputs)]
    assert rows == [pair[side] for side in (0, 1) for pair in PAIRS]


def test_a_batch_without_a_shared_token_stays_as_it_is() -> None:
    inputs, _ = concatenate_rows([{"input_ids": np.array(row)} for row in ([1, 2], [2, 2], [3, 2], [4, 2])])
    assert share_prefixes(inputs) is inputs


@pytest.mark.parametrize(("family", "more"), FAMILIES)
def test_logits_and_gradients_are_those_of_whole_sequences(family: str, more: dict[str, Any]) -> None:
    model = make(family, more).double()
    expected, wanted = logits_and_gradients(model, whole())
    found, gradients = logits_and_gradients(model, share_prefixes(whole()))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for gradient, other in zip(gradients, wanted, strict=True):
        # the norms of all but GPT-2 compute in float32, whatever the weights are
        rounded = {} if family == "GPT2" else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(gradient, other, **rounded)


@pytest.mark.parametrize("age", ["torch_2_11", "torch_2_13"])
def test_the_kernel_of_a_gpu_gets_whole_sequences(age: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("Llama", {}).bfloat16()
    expected, wanted = logits_and_gradients(model, whole())
    kernel = Kernel()
    monkeypatch.setattr(varlen, "varlen_attn", getattr(kernel, age))
    monkeypatch.setattr(segmented, "_has_ampere", lambda device: True)
    found, gradients = logits_and_gradients(model, share_prefixes(whole()))
    assert kernel.calls == 2
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
    for gradient, other in zip(gradients, wanted, strict=True):
        assert (gradient - other).float().norm() <= 0.03 * other.float().norm() + 1e-3


def test_models_that_look_ahead_or_use_another_attention_do_not_share() -> None:
    config = transformers.LlamaConfig()
    assert can_share_tokens(config) and not can_share_tokens(config, "flash_attention_2")
    config.use_bidirectional_attention = True
    assert not can_share_tokens(config)
    model = make("Llama", {})
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(RuntimeError, match="causal"):
        model(**share_prefixes(whole()), use_cache=False)
