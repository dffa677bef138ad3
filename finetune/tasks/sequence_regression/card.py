"""The card of sequence_regression: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.recipe.card import TaskCard
from finetune.recipe.section import Section

METRICS = ("pearson", "spearman", "mse", "mae")


class SequenceRegressionOptions(Section):
    max_length: int = Field(
        default=256, ge=4, description="Tokens of an example at most, the model's own limit besides."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate", description="A longer text: cut its end, leave the example out (counted), or a bad row."
    )
    loss: Literal["mse", "mae", "huber"] = Field(
        default="mse", description="Squared error, absolute error, or squared up to 1 and absolute beyond (Huber)."
    )
    new_head: bool = Field(default=False, description="Train a new head, even if the checkpoint has one.")


CARD = TaskCard(
    name="sequence_regression",
    auto_model="AutoModelForSequenceClassification",
    summary="Predict a number for a text, or for a pair of texts.",
    columns={"text": "The text.", "text_pair": "A second text, to be compared with it.", "label": "The number."},
    required=(("text",), ("label",)),
    metrics=METRICS,
    default_metrics=METRICS,
    best="pearson",
    unit="example",
    options=SequenceRegressionOptions,
    balance_window=16,
)
