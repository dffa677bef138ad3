"""The card of token_classification: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.metrics.catalogue import metrics_of
from finetune.recipe.card import AnswerSpec, BatchSpec, LossSpec, MetricSpec, ModelSpec, RowSpec, TaskCard
from finetune.recipe.section import Section

SPANS = (
    "Spans of characters are not read as they are; docs/your-data.md, Spans, has a script that writes words and tags"
)
DEFAULT_METRICS = ("entity_f1", "entity_precision", "entity_recall", "word_accuracy", "per_entity")


class TokenClassificationOptions(Section):
    max_length: int = Field(
        default=256, ge=4, description="Maximum tokens per example; the model's own limit applies as well."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate",
        description="Longer examples. truncate: cut the end (words cut off count as untagged in the metrics); drop: skip the "
        "example (counted); error: report a bad row.",
    )
    label_on: Literal["first", "all"] = Field(
        default="first",
        description="Supervised pieces of a word: the first, or all (B- becomes I- on the later ones). The prediction for a "
        "word is that of its first piece.",
    )
    labels: list[str] = Field(
        default_factory=list,
        description="Tag names: in the order of the indices if the data has 0, 1, ...; otherwise all allowed names. "
        "Default: the names in the data.",
    )
    new_head: bool = Field(default=False, description="Train a new head even if the checkpoint has one.")


CARD = TaskCard(
    name="token_classification",
    summary="Tag every word of a text: named entities, parts of speech.",
    rows=RowSpec(
        columns={
            "tokens": "The words: a list.",
            "tags": "One tag per word: a list of names or numbers.",
        },
        required=(("tokens",), ("tags",)),
        targets=("tags",),
        asked=(("tokens", "text"),),
        asked_columns={"text": "Plain text in place of a list of words; it is split into words."},
        line_role="text",
        class_role="tags",
        column_hints={"spans": SPANS, "entities": SPANS},
    ),
    metrics=MetricSpec(available=metrics_of("tags", "reference_tags"), default=DEFAULT_METRICS, best="entity_f1"),
    loss=LossSpec(unit="word", label_smoothing=True),
    model=ModelSpec(auto_class="AutoModelForTokenClassification", embeds=True),
    batches=BatchSpec(packing="padding_free", packings=("none", "padding_free"), sequences=1),
    answers=AnswerSpec(pieces="words"),
    options=TokenClassificationOptions,
)
