"""Text classification of a model that was not trained here; see tasks/from_config.py."""

from __future__ import annotations

from typing import Any

from finetune.models.tokenizer import load_tokenizer
from finetune.recipe.model import ModelSection
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.from_config import Derivation, config_classes, is_number, text_limit
from finetune.tasks.text_classification.card import CARD, TextClassificationOptions


def artifacts(model: ModelSection, config: Any, notes: list[str]) -> TaskArtifacts:
    """Tokenizer, classes, and the longest text that the model takes."""
    tokenizer = load_tokenizer(model)
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    if several:
        notes.append("a text may have any number of classes (problem_type: multi_label_classification)")
    limit = text_limit(tokenizer, config, TextClassificationOptions().max_length, notes)
    options = TextClassificationOptions(
        problem="multi_label" if several else "single_label", max_length=limit, on_long="error"
    )
    settings = {**limit.settings, "packing": "none", "capacity": 0, "label_smoothing": 0.0}
    return TaskArtifacts(CARD.name, options, tokenizer, config_classes(config, notes), settings)


def _fit(config: Any) -> float:
    """A head over the whole text with classes."""
    return float(not is_number(config))


DERIVATION = Derivation(artifacts, fit=_fit, reads_bodies=True)
