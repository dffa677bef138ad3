"""Greedy generation for a batch of prompts, also in lockstep over ranks (ZeRO-3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig


def generate_replies(
    model: nn.Module, tokenizer: Any, prompts: Sequence[list[int]], *, new_tokens: int, stops: list[int], synced: bool
) -> list[str]:
    """One reply per prompt (token ids), without special tokens. Prompts are padded on the left.

    synced: all ranks take the same number of steps, as sharded weights need; then all ranks must call it.
    """
    bare: Any = getattr(model, "module", model)
    width = max(map(len, prompts))
    positions = getattr(bare.config, "max_position_embeddings", None)
    if isinstance(positions, int):
        new_tokens = max(1, min(new_tokens, positions - width))
    rows = [[tokenizer.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = next(model.parameters()).device
    made = bare.generate(
        input_ids=torch.tensor(rows, device=device),
        attention_mask=torch.tensor(mask, device=device),
        generation_config=GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=stops or None,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
        ),
        synced_gpus=synced,
    )
    return [text.strip() for text in tokenizer.batch_decode(made[:, width:].tolist(), skip_special_tokens=True)]
