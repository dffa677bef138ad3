"""Tokens of text, made by a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from finetune.models.inputs.kind import ROWS, InputKind, Known

LENGTH = 24  # of random rows


def _load(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _random(model: Any, known: Known, draw: torch.Generator) -> dict[str, torch.Tensor]:
    """Tokens of the whole vocabulary, and known texts that are long enough, all cut to one length."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2 * LENGTH
    length = max(2, min(LENGTH, int(positions) // 2))  # some models begin to count behind the padding token
    ids = torch.randint(0, vocabulary, (ROWS, length), generator=draw)
    for text in known.texts:
        row = known.processor(text)["input_ids"]
        if len(row) >= length:
            ids = torch.cat([ids, torch.tensor([list(row[:length])])])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids.flip(1)
    return inputs


INPUT = InputKind("tokenizer", "input_ids", _load, _random)
