"""On CUDA: one variable-length flash call for a whole pack equals the examples one by one."""

import pytest
import torch

from finetune.models.segmented import use_segmented_attention
from finetune.tasks.text.padding_free import concatenate_rows

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("window", [None, 16])
def test_packed_logits_and_gradients_are_those_of_single_examples(window):
    import transformers

    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=100, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, sliding_window=window,
    )  # fmt: skip
    model = transformers.MistralForCausalLM(config).cuda().to(torch.bfloat16)
    rows = [{"input_ids": torch.randint(0, 100, (length,)).numpy()} for length in (40, 7, 96, 1)]
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
