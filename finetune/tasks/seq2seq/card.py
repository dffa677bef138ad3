"""The card of seq2seq: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.recipe.card import TaskCard
from finetune.recipe.section import Section


class Seq2SeqOptions(Section):
    prefix: str = Field(default="", description='Put before every source, such as "translate German to English: ".')
    max_source_length: int = Field(
        default=256, ge=4, description="Tokens of a source at most, the model's limit besides."
    )
    max_target_length: int = Field(
        default=128, ge=2, description="Tokens of a target at most; also of what is generated at evaluation."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate", description="A longer one: cut its end, leave the example out (counted), or a bad row."
    )
    beams: int = Field(default=1, ge=1, description="Beams of the generation at evaluation; 1: greedy.")


CARD = TaskCard(
    name="seq2seq",
    auto_model="AutoModelForSeq2SeqLM",
    summary="Translate or summarise with an encoder-decoder model.",
    columns={"source": "The text to translate or summarise.", "target": "What should come of it."},
    required=(("source",), ("target",)),
    metrics=("perplexity", "sacrebleu", "chrf", "rouge1", "rouge2", "rouge_l", "exact_match"),
    default_metrics=("perplexity", "sacrebleu", "chrf"),
    best="sacrebleu",
    unit="token",
    options=Seq2SeqOptions,
    label_smoothing=True,
    micro_batch=16,
)
