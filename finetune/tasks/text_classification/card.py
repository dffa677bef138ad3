"""The card of text_classification: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.recipe.card import AnswerSpec, BatchSpec, LossSpec, MetricSpec, ModelSpec, RowSpec, TaskCard
from finetune.recipe.section import Section
from finetune.tasks.class_metrics import DEFAULT_METRICS, METRICS


class TextClassificationOptions(Section):
    problem: Literal["single_label", "multi_label"] = Field(
        default="single_label",
        description="single_label: one label per example. multi_label: any number of labels, or none: a list of names, a "
        "vector of 0 and 1, or text (see label_separator).",
    )
    label_separator: Literal["from_data", "none", "|", ";", ","] = Field(
        default="from_data",
        description="multi_label: the separator of the labels in a text. from_data: determined from the whole column, and "
        "reported; none: each text is one label.",
    )
    max_length: int = Field(
        default=256, ge=4, description="Maximum tokens per example; the model's own limit applies as well."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate",
        description="Longer examples. truncate: cut the end; drop: skip the example (counted); error: report a bad row.",
    )
    labels: list[str] = Field(
        default_factory=list,
        description="Class names: in the order of the indices if the data has 0, 1, ...; otherwise all allowed names. "
        "Default: the names in the data.",
    )
    new_head: bool = Field(default=False, description="Train a new head even if the checkpoint has one.")


CARD = TaskCard(
    name="text_classification",
    summary="Classify a text, or a pair of texts, into one class or several.",
    rows=RowSpec(
        columns={
            "text": "The text.",
            "text_pair": "A second text, for pairs such as premise and hypothesis.",
            "label": "The class: a name or a number. multi_label: a list of them, a vector of 0 and 1, or text.",
        },
        required=(("text",), ("label",)),
        targets=("label",),
        line_role="text",
        class_role="label",
        several=("problem", "multi_label"),
    ),
    metrics=MetricSpec(available=METRICS, default=DEFAULT_METRICS, best="accuracy"),
    loss=LossSpec(unit="example", label_smoothing=True),
    model=ModelSpec(auto_class="AutoModelForSequenceClassification", embeds=True),
    batches=BatchSpec(packing="padding_free", packings=("none", "padding_free"), sequences=1, balance_window=16),
    answers=AnswerSpec(pieces="texts", merges=("mean", "max", "head_tail")),
    options=TextClassificationOptions,
)
