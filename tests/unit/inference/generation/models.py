"""Tiny models that write text, and a tokenizer of single characters, for the tests of this folder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models

V = 64
END = 1
LLAMA = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 96, "initializer_range": 0.6,
}  # fmt: skip


def letters() -> hf.PreTrainedTokenizerFast:
    """Token 0 is padding, 1 the end of a text, 2 the end of a turn, and the others one character each."""
    characters = [chr(code) for code in range(32, 32 + V - 3)]
    vocabulary = {"<pad>": 0, "<end>": 1, "<turn>": 2, **{one: 3 + place for place, one in enumerate(characters)}}
    made = Tokenizer(token_models.WordLevel(vocabulary, unk_token=" "))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", additional_special_tokens=["<turn>"],
        chat_template=(
            "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }}<turn>{% endfor %}"
            "{% if add_generation_prompt %}a:{% endif %}"
        ),
    )  # fmt: skip


def llama(**settings: Any) -> Any:
    torch.manual_seed(3)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**LLAMA, **settings}, pad_token_id=0, eos_token_id=END)).eval()


def artifacts(tokenizer: Any = None, **settings: Any) -> Any:
    return SimpleNamespace(processor=tokenizer or letters(), settings=settings, task="causal_lm")
