"""Language models of a model that was not trained here; see tasks/from_config.py."""

from __future__ import annotations

from typing import Any

from finetune.models.tokenizer import load_tokenizer
from finetune.recipe.model import ModelSection
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.causal_lm.card import CARD, CausalLMOptions
from finetune.tasks.from_config import Derivation, text_limit
from finetune.tasks.text.chat import ensure_template


def artifacts(model: ModelSection, config: Any, notes: list[str]) -> TaskArtifacts:
    """Tokenizer with its chat template, and the positions of the model."""
    tokenizer = load_tokenizer(model)
    own_template = ensure_template(tokenizer, plain=False)
    if not own_template:
        notes.append(
            "the tokenizer has no chat template: prompts are continued as they are, conversations are written with "
            "Alpaca's headings"
        )
    limit = text_limit(tokenizer, config, CausalLMOptions().max_length, notes)
    settings = {**limit.settings, "packing": "none", "capacity": 0, "own_template": own_template, "tools": []}
    return TaskArtifacts(CARD.name, CausalLMOptions(max_length=limit, on_long="error"), tokenizer, settings=settings)


DERIVATION = Derivation(artifacts)
