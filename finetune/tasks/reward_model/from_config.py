"""Rewards of a model that was not trained here; see tasks/from_config.py."""

from __future__ import annotations

from typing import Any

from finetune.models.tokenizer import load_tokenizer
from finetune.recipe.model import ModelSection
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.from_config import Derivation, is_number, text_limit
from finetune.tasks.reward_model.card import CARD, RewardModelOptions
from finetune.tasks.text.chat import ensure_template


def artifacts(model: ModelSection, config: Any, notes: list[str]) -> TaskArtifacts:
    """Tokenizer with its chat template, unless it takes prompt and reply as a pair, and the longest conversation."""
    tokenizer = load_tokenizer(model)
    as_pair = not tokenizer.chat_template and tokenizer.sep_token is not None
    if not as_pair and not ensure_template(tokenizer, plain=False):
        notes.append("the tokenizer has no chat template: conversations are written with Alpaca's headings")
    limit = text_limit(tokenizer, config, RewardModelOptions().max_length, notes)
    settings = {**limit.settings, "packing": "none", "capacity": 0, "as_pair": as_pair, "tools": []}
    return TaskArtifacts(CARD.name, RewardModelOptions(max_length=limit, on_long="error"), tokenizer, settings=settings)


def _fit(config: Any) -> float:
    """A number for a text; sequence regression is likelier, as nothing says that the number is a reward."""
    return 0.5 * is_number(config)


DERIVATION = Derivation(artifacts, fit=_fit)
