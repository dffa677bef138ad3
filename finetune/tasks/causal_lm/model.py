"""Building a causal language model: its loss inside the forward pass, packed attention, and where generation stops."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM

from finetune.models.segmented import use_segmented_attention
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.facts import Facts
from finetune.tasks.text.building import build_text_model
from finetune.tasks.text.chat import chat_encoder
from finetune.tasks.text.supervised_tokens import note_loss_head


def build_language_model(plan: Plan, artifacts: TaskArtifacts, facts: Facts, *, packed: bool) -> nn.Module:
    """The language model, adapters included. packed: attention stays inside concatenated examples. All ranks call it."""

    def finish(model: Any) -> None:
        if packed:
            use_segmented_attention(model)
        generation = model.generation_config
        if generation is not None:
            generation.eos_token_id = stop_tokens(artifacts.processor)
            generation.pad_token_id = artifacts.processor.pad_token_id

    model = build_text_model(
        AutoModelForCausalLM,
        plan,
        artifacts,
        facts,
        has_head=False,
        before_adapter=finish,
    )
    note_loss_head(model, facts)
    return model


def stop_tokens(tokenizer: Any) -> list[int]:
    """Tokens at which generation ends: end of text, and the chat template's end of turn."""
    eos = tokenizer.eos_token_id
    return sorted({*chat_encoder(tokenizer).end_of_turn(tokenizer), *([] if eos is None else [eos])})
