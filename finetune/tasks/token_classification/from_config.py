"""Token classification of a model that was not trained here; see tasks/from_config.py."""

from __future__ import annotations

from typing import Any

from finetune.models.tokenizer import load_tokenizer
from finetune.recipe.model import ModelSection
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.from_config import Derivation, config_classes, text_limit
from finetune.tasks.token_classification.card import CARD, TokenClassificationOptions


def artifacts(model: ModelSection, config: Any, notes: list[str]) -> TaskArtifacts:
    """Tokenizer, tags, and the longest text that the model takes."""
    tokenizer = load_tokenizer(model)
    limit = text_limit(tokenizer, config, TokenClassificationOptions().max_length, notes)
    options = TokenClassificationOptions(max_length=limit, on_long="error")
    settings = {**limit.settings, "packing": "none", "capacity": 0, "label_smoothing": 0.0}
    return TaskArtifacts(CARD.name, options, tokenizer, config_classes(config, notes), settings)


DERIVATION = Derivation(artifacts)
