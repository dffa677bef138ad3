"""Sequence regression of a model that was not trained here; see tasks/from_config.py."""

from __future__ import annotations

from typing import Any

from finetune.models.tokenizer import load_tokenizer
from finetune.recipe.model import ModelSection
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.from_config import Derivation, is_number, text_limit
from finetune.tasks.sequence_regression.card import CARD, SequenceRegressionOptions


def artifacts(model: ModelSection, config: Any, notes: list[str]) -> TaskArtifacts:
    """Tokenizer, and the longest text that the model takes."""
    tokenizer = load_tokenizer(model)
    limit = text_limit(tokenizer, config, SequenceRegressionOptions().max_length, notes)
    options = SequenceRegressionOptions(max_length=limit, on_long="error")
    return TaskArtifacts(CARD.name, options, tokenizer, settings={**limit.settings, "packing": "none", "capacity": 0})


DERIVATION = Derivation(artifacts, fit=is_number)
