"""Building models that read text: loaded for the tokenizer's vocabulary, padded as it pads, with an adapter on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification

from finetune.models.auto_classes import task_type_of
from finetune.models.config import load_config
from finetune.models.continuing import adapt
from finetune.models.head import head_names
from finetune.models.load import load_model
from finetune.models.padding_free import make_padding_free
from finetune.models.tokenizer import fresh_settings, new_token_ids, set_padding, vocabulary_size
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.facts import Facts
from finetune.tasks.text.padding_free import is_concatenated

SEQUENCE_HEAD = "ForSequenceClassification"


def build_text_model(
    auto_class: Any,
    plan: Plan,
    artifacts: TaskArtifacts,
    facts: Facts,
    *,
    settings: dict[str, Any] | None = None,
    new_head: bool = False,
    has_head: bool = True,
    always_pad: bool = False,
    before_adapter: Callable[[Any], None] | None = None,
) -> nn.Module:
    """The model of `auto_class` with the plan's weights, dtype and adapter. All ranks call it.

    settings: of the configuration, over the recipe's and the tokenizer's, such as {"id2label": ...}.
    has_head: the model has a head of its own beside the body, which an adapter saves whole. always_pad: the model looks
    for the padding token (classifiers on decoders). before_adapter: called with the bare model.
    """
    recipe, tokenizer = plan.recipe, artifacts.processor
    model, loading = load_model(
        auto_class,
        recipe.model,
        load_config(recipe.model, **{**(settings or {}), **fresh_settings(recipe.model, tokenizer)}),
        dtype=plan.weights_dtype,
        seed=recipe.seed,
        new_head=new_head,
        vocabulary=vocabulary_size(tokenizer),
        kernels=plan.machine.kernels,
    )
    facts.update(loading.facts())
    set_padding(model, tokenizer, always=always_pad)
    if before_adapter is not None:
        before_adapter(model)
    if recipe.adapter is None:
        return model
    return adapt(
        model,
        recipe,
        task_type_of(auto_class.__name__),
        head_names(model) if has_head else [],
        new_tokens=new_token_ids(recipe.model, tokenizer, loading.grown),
    )


def build_sequence_model(
    plan: Plan, artifacts: TaskArtifacts, facts: Facts, settings: dict[str, Any], *, new_head: bool
) -> nn.Module:
    """A body with a head over the whole sequence; all ranks call it.

    settings: of the configuration, such as {"id2label": ..., "problem_type": ...}.
    """
    return build_text_model(
        AutoModelForSequenceClassification,
        plan,
        artifacts,
        facts,
        settings=settings,
        new_head=new_head,
        always_pad=True,
        before_adapter=make_padding_free if is_concatenated(artifacts) else None,
    )
