"""The card of text_classification: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.recipe.card import TaskCard
from finetune.recipe.section import Section
from finetune.tasks.class_metrics import DEFAULT_METRICS, METRICS


class TextClassificationOptions(Section):
    problem: Literal["single_label", "multi_label"] = Field(
        default="single_label", description="One label an example, or any number (a list, or text with | between)."
    )
    max_length: int = Field(
        default=256, ge=4, description="Tokens of an example at most, the model's own limit besides."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate", description="A longer text: cut its end, leave the example out (counted), or a bad row."
    )
    labels: list[str] = Field(
        default_factory=list,
        description="Names of the classes in order, where the data holds 0, 1, ...; or all there may be. Default: as found.",
    )
    new_head: bool = Field(default=False, description="Train a new head, even if the checkpoint has one.")


CARD = TaskCard(
    name="text_classification",
    auto_model="AutoModelForSequenceClassification",
    summary="Classify a text, or a pair of texts, into one class or several.",
    columns={
        "text": "The text.",
        "text_pair": "A second text, for pairs such as premise and hypothesis.",
        "label": "The class: a name or a number; a list of them, or text with | between, for multi_label.",
    },
    required=(("text",), ("label",)),
    metrics=METRICS,
    default_metrics=DEFAULT_METRICS,
    best="accuracy",
    unit="example",
    options=TextClassificationOptions,
    label_smoothing=True,
    balance_window=16,
)
