"""Encoder-decoder models of a model that was not trained here; see tasks/from_config.py."""

from __future__ import annotations

from typing import Any

from finetune.models.tokenizer import load_tokenizer
from finetune.recipe.model import ModelSection
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.from_config import Derivation, text_limit
from finetune.tasks.seq2seq.card import CARD, Seq2SeqOptions
from finetune.tasks.text.limits import KEY as LIMITED_BY


def artifacts(model: ModelSection, config: Any, notes: list[str]) -> TaskArtifacts:
    """Tokenizer, and the longest source that the model takes. Sources are used as they are, without a prefix."""
    tokenizer = load_tokenizer(model)
    limit = text_limit(tokenizer, config, Seq2SeqOptions().max_source_length, notes)
    if prefixes := _prefixes(config):
        notes.append(f"the model was trained with prefixes, which the rows must hold themselves: {', '.join(prefixes)}")
    options = Seq2SeqOptions(max_source_length=int(limit), on_long="error")
    settings = {"max_source_length": int(limit), LIMITED_BY: limit.name, "label_smoothing": 0.0}
    return TaskArtifacts(CARD.name, options, tokenizer, settings=settings)


def _prefixes(config: Any) -> list[str]:
    tasks = getattr(config, "task_specific_params", None) or {}
    return [repr(one["prefix"]) for one in tasks.values() if isinstance(one, dict) and one.get("prefix")]


DERIVATION = Derivation(artifacts)
