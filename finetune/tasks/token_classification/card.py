"""The card of token_classification: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.recipe.card import TaskCard
from finetune.recipe.section import Section

METRICS = ("entity_f1", "entity_precision", "entity_recall", "word_accuracy", "per_entity")


class TokenClassificationOptions(Section):
    max_length: int = Field(
        default=256, ge=4, description="Tokens of an example at most, the model's own limit besides."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate",
        description="A longer one: cut its end (words cut off count as untagged in the metrics), leave the example out "
        "(counted), or a bad row.",
    )
    label_on: Literal["first", "all"] = Field(
        default="first",
        description="Pieces of a word that learn its tag: the first, or all (B- becomes I- on the later ones). "
        "Predictions are read off the first.",
    )
    labels: list[str] = Field(
        default_factory=list,
        description="Names of the tags in order, where the data holds 0, 1, ...; or all there may be. Default: as found.",
    )
    new_head: bool = Field(default=False, description="Train a new head, even if the checkpoint has one.")


CARD = TaskCard(
    name="token_classification",
    auto_model="AutoModelForTokenClassification",
    summary="Tag every word of a text: named entities, parts of speech.",
    columns={
        "tokens": "The words: a list.",
        "tags": "A tag for each word: a list of names or numbers.",
    },
    required=(("tokens",), ("tags",)),
    metrics=METRICS,
    default_metrics=METRICS,
    best="entity_f1",
    unit="word",
    options=TokenClassificationOptions,
    label_smoothing=True,
)
