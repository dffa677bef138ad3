"""On CUDA: one variable-length flash call for a whole pack equals the examples one by one, and pairs behind one prompt two
sequences.
"""

import importlib.util

import pytest
import torch

from finetune.models import segmented
from finetune.models.attention_kernels import leave_cudnn_out
from finetune.models.kernels import use_liger
from finetune.models.light_checkpointing import use_light_checkpointing
from finetune.models.segmented import use_segmented_attention
from finetune.tasks.text.padding_free import concatenate_rows
from finetune.tasks.text.shared_prefixes import share_prefixes, whole_sequences

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("lengths", [(40, 7, 96, 1), (64, 64, 64)], ids=["unequal", "equal"])
@pytest.mark.parametrize("window", [None, 16])
def test_packed_logits_and_gradients_are_those_of_single_examples(window, lengths):
    import transformers

    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=100, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, sliding_window=window,
    )  # fmt: skip
    model = transformers.MistralForCausalLM(config).cuda().to(torch.bfloat16)
    rows = [{"input_ids": torch.randint(0, 100, (length,)).numpy()} for length in lengths]
    alone = [model(input_ids=torch.as_tensor(row["input_ids"])[None].cuda(), use_cache=False).logits for row in rows]
    sum(logits.float().square().sum() for logits in alone).backward()
    expected = {name: parameter.grad.float().clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    use_segmented_attention(model)
    inputs, borders = concatenate_rows(rows)
    inputs = {key: value.cuda() if torch.is_tensor(value) else value for key, value in inputs.items()}
    packed = model(**inputs, use_cache=False).logits
    for start, end, logits in zip(borders, borders[1:], alone, strict=False):
        torch.testing.assert_close(packed[:, start:end], logits, rtol=3e-2, atol=3e-2)
    packed.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        found, wanted = parameter.grad.float(), expected[name]
        assert (found - wanted).norm() <= 0.03 * wanted.norm() + 1e-3, name


@pytest.mark.parametrize("length", [1024, 1100])
@pytest.mark.parametrize(("size", "causal"), [(64, True), (128, True), (64, False)])
def test_long_equal_segments_are_attention_in_float32(length, size, causal):
    """By cuDNN on Hopper where the length is a multiple of 128, by torch's choice elsewhere: forward and backward."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 2 * length, size, device="cuda") for heads in (4, 2, 2))
    exact = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    rows = [tensor[0].unflatten(1, (2, length)).transpose(0, 1) for tensor in exact]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = torch.nn.functional.scaled_dot_product_attention(*rows, is_causal=causal, enable_gqa=True)
    wanted = wanted.transpose(1, 2).flatten(0, 1).unsqueeze(0)
    half = [tensor.bfloat16().requires_grad_() for tensor in (query, key, value)]
    found = segmented._equal_segments(*half, length, None, causal)
    incoming = torch.randn_like(wanted)
    wanted.backward(incoming)
    found.backward(incoming.bfloat16())
    for mine, other in [(found, wanted), *((a.grad, b.grad) for a, b in zip(half, exact, strict=True))]:
        assert mine.shape == other.shape
        assert (mine.float() - other).norm() <= 1.5e-2 * other.norm()


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger_kernel is not installed")
def test_light_has_the_gradients_of_fused_layers_with_norms_of_heads():
    """liger-kernel's rotary embeddings write over what those norms give."""
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=100, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).cuda().to(torch.bfloat16)
    use_liger(model)
    use_segmented_attention(model)
    inputs, _ = concatenate_rows([{"input_ids": torch.randint(0, 100, (length,)).numpy()} for length in (40, 7, 96, 1)])
    inputs = {key: value.cuda() if torch.is_tensor(value) else value for key, value in inputs.items()}
    found = []
    for light in (None, use_light_checkpointing):
        state = light and light(model)
        model.train()(**inputs, use_cache=False).logits.float().square().sum().backward()
        found.append({name: parameter.grad.float() for name, parameter in model.named_parameters()})
        model.zero_grad()
    assert state.dropped
    for name, wanted in found[0].items():
        assert (found[1][name] - wanted).norm() <= 0.01 * wanted.norm() + 1e-3, name


@pytest.mark.parametrize("length", [64, 704])
def test_gradients_behind_a_mask_are_finite(length):
    """cuDNN's are not: github.com/pytorch/pytorch/issues/196678."""
    leave_cudnn_out()
    query, key = (0.1 * torch.randn(1, 1, length, 64, device="cuda") for _ in range(2))
    query[..., 0], key[..., 0] = 1.0, -960.0  # scores of -120
    query, key, value = (tensor.bfloat16().requires_grad_() for tensor in (query, key, torch.randn_like(query)))
    mask = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    out.backward(torch.randn_like(out))
    assert all(tensor.grad.isfinite().all() for tensor in (query, key, value))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pairs_behind_one_prompt_have_the_logits_and_gradients_of_two_sequences(dtype):
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).cuda().to(dtype)
    use_segmented_attention(model)
    prompt = torch.arange(40) % 100
    rows = [torch.cat((prompt, torch.full((length,), 50 + length))).numpy() for length in (7, 30)]
    whole, _ = concatenate_rows([{"input_ids": row} for row in rows])
    shared = share_prefixes(whole)
    assert shared["input_ids"].shape[1] == whole["input_ids"].shape[1] - 40
    found = []
    for inputs in (whole, shared):
        inputs = {key: value.cuda() if torch.is_tensor(value) else value for key, value in inputs.items()}
        model.zero_grad()
        logits = whole_sequences(model(**inputs, use_cache=False).logits, inputs)
        logits.float().square().sum().backward()
        found.append((logits.detach(), [weight.grad.float().clone() for weight in model.parameters()]))
    loose = 3e-2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found[1][0], found[0][0], rtol=loose, atol=loose)
    for one, other in zip(found[1][1], found[0][1], strict=True):
        assert (one - other).norm() <= loose * other.norm() + 1e-3
