"""The card of sequence_regression: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.metrics.catalogue import metrics_of
from finetune.recipe.card import AnswerSpec, BatchSpec, LossSpec, MetricSpec, ModelSpec, RowSpec, TaskCard
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
    summary="Predict a number for a text, or for a pair of texts.",
    rows=RowSpec(
        columns={"text": "The text.", "text_pair": "A second text, for pairs.", "label": "The number."},
        required=(("text",), ("label",)),
        targets=("label",),
        line_role="text",
    ),
    metrics=MetricSpec(available=metrics_of("value", "target"), default=DEFAULT_METRICS, best="pearson"),
    loss=LossSpec(unit="example"),
    model=ModelSpec(auto_class="AutoModelForSequenceClassification", embeds=True),
    batches=BatchSpec(packing="padding_free", packings=("none", "padding_free"), sequences=1, balance_window=16),
    answers=AnswerSpec(pieces="texts", merges=("mean", "max", "head_tail")),
    options=SequenceRegressionOptions,
)
