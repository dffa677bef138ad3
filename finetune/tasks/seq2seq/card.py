"""The card of seq2seq: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.metrics.catalogue import metrics_of
from finetune.recipe.card import LossSpec, MetricSpec, ModelSpec, RowSpec, TaskCard
from finetune.recipe.section import Section


class Seq2SeqOptions(Section):
    prefix: str = Field(default="", description='Prefix of every source, such as "translate German to English: ".')
    max_source_length: int = Field(
        default=256, ge=4, description="Maximum tokens of a source; the model's own limit applies as well."
    )
    max_target_length: int = Field(
        default=128, ge=2, description="Maximum tokens of a target, and of the text generated in evaluation."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate",
        description="Longer examples. truncate: cut the end; drop: skip the example (counted); error: report a bad row.",
    )
    beams: int = Field(default=1, ge=1, le=1024, description="Beams of beam search in evaluation. 1: greedy decoding.")


CARD = TaskCard(
    name="seq2seq",
    title="sequence-to-sequence generation",
    summary="Translate or summarize with an encoder-decoder model.",
    rows=RowSpec(
        columns={"source": "The text to translate or summarize.", "target": "The expected text."},
        required=(("source",), ("target",)),
        targets=("target",),
        line_role="source",
    ),
    metrics=MetricSpec(
        available=metrics_of("loss", "weight", "text", "reference_text"),
        default=("perplexity", "sacrebleu", "chrf"),
        best="sacrebleu",
    ),
    loss=LossSpec(unit="token", label_smoothing=True),
    model=ModelSpec(auto_class="AutoModelForSeq2SeqLM"),
    options=Seq2SeqOptions,
)
