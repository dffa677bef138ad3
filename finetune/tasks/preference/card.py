"""The card of preference: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.recipe.card import TaskCard
from finetune.recipe.section import Section
from finetune.tasks.text.preference_pairs import COLUMNS, PROMPTS

REFERENCE_FREE = ("orpo", "simpo")  # losses that need no reference model
METRICS = ("preference_accuracy", "reward_margin", "chosen_reward", "rejected_reward")


class PreferenceOptions(Section):
    loss: Literal["dpo", "ipo", "kto", "orpo", "simpo"] = Field(
        default="dpo",
        description="dpo, ipo, orpo, simpo: pairs. kto: single replies with a label. orpo, simpo: no reference.",
    )
    beta: float | Literal["auto"] = Field(
        default="auto",
        description="How far the model may move from the reference (orpo: weight of the odds). auto: 0.1, simpo 2.",
    )
    margin: float = Field(default=1.0, ge=0, description="simpo: by how much the chosen reply should win (gamma).")
    desirable_weight: float = Field(default=1.0, gt=0, description="kto: weight of desirable replies.")
    undesirable_weight: float = Field(default=1.0, gt=0, description="kto: weight of undesirable replies.")
    template: Literal["auto", "plain"] = Field(
        default="auto", description="auto: the tokenizer's chat template where it has one; plain: Alpaca's headings."
    )
    system: str = Field(default="", description="System prompt of every conversation that has none of its own.")
    max_length: int = Field(
        default=1024, ge=8, description="Tokens of a prompt with its reply at most, the model's own limit besides."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate", description="A longer one: cut its end, leave the example out (counted), or a bad row."
    )
    reply_length: int = Field(default=128, ge=1, description="Tokens generated at most, in answers to new prompts.")

    @property
    def resolved_beta(self) -> float:
        """beta, or the customary value of the loss."""
        if self.beta != "auto":
            return self.beta
        return 2.0 if self.loss == "simpo" else 0.1


CARD = TaskCard(
    name="preference",
    auto_model="AutoModelForCausalLM",
    summary="Teach a language model which replies are better: DPO, IPO, ORPO, SimPO, KTO.",
    columns={
        **COLUMNS,
        "completion": "kto: a reply.",
        "label": "kto: true if the reply is desirable, false if not.",
    },
    required=((*PROMPTS, "completion"), ("chosen", "completion")),
    metrics=METRICS,
    default_metrics=METRICS,
    best="preference_accuracy",
    unit="example",
    options=PreferenceOptions,
    label_smoothing=True,
    micro_batch=4,
    balance_window=16,
    splits=("tensor",),
)
