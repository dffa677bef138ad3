"""The card of preference: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.metrics.catalogue import metrics_of
from finetune.recipe.card import BatchSpec, LossSpec, MetricSpec, ModelSpec, RowSpec, TaskCard
from finetune.recipe.section import Section
from finetune.tasks.text.preference_pairs import COLUMNS, PROMPTS

REFERENCE_FREE = ("orpo", "simpo")  # losses that need no reference model
DEFAULT_METRICS = ("preference_accuracy", "reward_margin", "chosen_reward", "rejected_reward")


class PreferenceOptions(Section):
    loss: Literal["dpo", "ipo", "kto", "orpo", "simpo"] = Field(
        default="dpo",
        description="dpo, ipo, orpo, simpo: from pairs; kto: from single, labeled replies. orpo, simpo: no reference model.",
    )
    beta: float | Literal["auto"] = Field(
        default="auto",
        description="How closely the model stays to the reference; orpo: weight of the odds ratio. auto: 0.1, simpo: 2.",
    )
    margin: float = Field(default=1.0, ge=0, description="simpo: target reward margin (gamma).")
    desirable_weight: float = Field(default=1.0, gt=0, description="kto: weight of desirable replies.")
    undesirable_weight: float = Field(default=1.0, gt=0, description="kto: weight of undesirable replies.")
    template: Literal["auto", "plain"] = Field(
        default="auto",
        description="auto: the chat template of the tokenizer, if it has one, otherwise plain. plain: Alpaca's headings.",
    )
    system: str = Field(default="", description="System prompt for conversations that have none.")
    tools: str = Field(
        default="", description="JSON file of tool schemas, for conversations that have none of their own."
    )
    max_length: int = Field(
        default=1024,
        ge=8,
        description="Maximum tokens of prompt and reply together; the model's own limit applies as well.",
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate",
        description="Longer examples. truncate: cut the end; drop: skip the example (counted); error: report a bad row.",
    )
    reply_length: int = Field(default=128, ge=1, description="Maximum generated tokens when answering new prompts.")

    @property
    def resolved_beta(self) -> float:
        """beta, or the customary value of the loss."""
        if self.beta != "auto":
            return self.beta
        return 2.0 if self.loss == "simpo" else 0.1


CARD = TaskCard(
    name="preference",
    title="preference optimization",
    summary="Align a language model with preferences: DPO, IPO, ORPO, SimPO, KTO.",
    rows=RowSpec(
        columns={
            **COLUMNS,
            "completion": "kto: a reply.",
            "label": "kto: true if the reply is desirable, false if not.",
        },
        required=((*PROMPTS, "completion"), ("chosen", "completion")),
        targets=("chosen", "rejected", "completion", "label"),
        asked=(PROMPTS,),
        line_role="prompt",
        unhashed=("input", "history", "tools"),
    ),
    metrics=MetricSpec(
        available=metrics_of("chosen_reward", "rejected_reward"), default=DEFAULT_METRICS, best="preference_accuracy"
    ),
    loss=LossSpec(unit="example", label_smoothing=True),
    model=ModelSpec(auto_class="AutoModelForCausalLM", splits=("tensor",)),
    batches=BatchSpec(
        micro_batch=4, packing="padding_free", packings=("none", "padding_free"), sequences=2, balance_window=16
    ),
    options=PreferenceOptions,
)
