"""The card of sequence_regression: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.metrics.catalogue import metrics_of
from finetune.recipe.card import TaskCard
from finetune.recipe.section import Section

DEFAULT_METRICS = ("pearson", "spearman", "mse", "mae")


class SequenceRegressionOptions(Section):
    max_length: int = Field(
        default=256, ge=4, description="Maximum tokens per example; the model's own limit applies as well."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate",
        description="Longer examples. truncate: cut the end; drop: skip the example (counted); error: report a bad row.",
    )
    loss: Literal["mse", "mae", "huber"] = Field(
        default="mse", description="mse: squared error; mae: absolute error; huber: squared up to 1, absolute beyond."
    )
    new_head: bool = Field(default=False, description="Train a new head even if the checkpoint has one.")


CARD = TaskCard(
    name="sequence_regression",
    title="text regression",
    auto_model="AutoModelForSequenceClassification",
    summary="Predict a number for a text, or for a pair of texts.",
    columns={"text": "The text.", "text_pair": "A second text, for pairs.", "label": "The number."},
    required=(("text",), ("label",)),
    line_role="text",
    targets=("label",),
    metrics=metrics_of("value", "target"),
    default_metrics=DEFAULT_METRICS,
    best="pearson",
    unit="example",
    options=SequenceRegressionOptions,
    packing="padding_free",
    packings=("none", "padding_free"),
    rows=1,
    balance_window=16,
    embeds=True,
    pieces="texts",
    merges=("mean", "max", "head_tail"),
)
