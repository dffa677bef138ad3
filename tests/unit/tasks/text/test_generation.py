"""Proves that the reply to a prompt does not depend on the other prompts of its batch, near the end of the model too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from finetune.tasks.text.generation import generate_replies

POSITIONS, NEW = 32, 12
LLAMA = transformers.LlamaConfig(
    vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=POSITIONS, eos_token_id=None,
)  # fmt: skip
GPT2 = transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=POSITIONS, eos_token_id=None)


class Numbers:
    """A tokenizer whose text is the ids."""

    pad_token_id = 0

    def batch_decode(self, rows: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["rotary", "learned positions"])
def test_a_prompt_near_the_limit_does_not_shorten_other_replies(config: Any) -> None:
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    prompts = [[5, 6, 7], list(range(1, 31)), [9] * (POSITIONS - NEW), [8] * (POSITIONS - NEW + 1), [4, 2]]
    settings: dict[str, Any] = {"new_tokens": NEW, "stops": [], "synced": False}
    together = generate_replies(model, Numbers(), prompts, **settings)
    alone = [generate_replies(model, Numbers(), [prompt], **settings)[0] for prompt in prompts]
    assert together == alone
    assert [len(reply.split()) for reply in together] == [NEW, 2, NEW, NEW - 1, NEW]
