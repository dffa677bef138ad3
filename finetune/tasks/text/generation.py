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

    A prompt that leaves less than `new_tokens` positions of the model is replied to alone, up to the last of them, so that no
    reply depends on the length of another prompt.
    synced: all ranks take the same number of steps, as sharded weights need; then all ranks must call it, and a batch is
    written in one piece: a prompt near the limit shortens the other replies of its batch.
    """
    bare: Any = getattr(model, "module", model)
    positions = getattr(bare.config, "max_position_embeddings", None)
    room = [positions - len(prompt) if isinstance(positions, int) else new_tokens for prompt in prompts]
    together = [index for index in range(len(prompts)) if synced or room[index] >= new_tokens]
    apart = [index for index in range(len(prompts)) if not synced and room[index] < new_tokens]
    replies: dict[int, str] = {}
    for group in filter(None, (together, *([index] for index in apart))):
        steps = max(1, min(new_tokens, *(room[index] for index in group)))
        texts = _generate(bare, tokenizer, [prompts[index] for index in group], steps, stops, synced)
        replies.update(zip(group, texts, strict=True))
    return [replies[index] for index in range(len(prompts))]


def _generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], new_tokens: int, stops: list[int], synced: bool
) -> list[str]:
    """Replies of at most `new_tokens` tokens, in one batch. Of short prompts, the padding has no positions of the model."""
    width = max(map(len, prompts))
    rows = [[tokenizer.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = next(model.parameters()).device
    made = model.generate(
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
