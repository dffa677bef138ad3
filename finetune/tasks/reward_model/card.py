"""The card of reward_model: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.metrics.catalogue import metrics_of
from finetune.recipe.card import AnswerSpec, BatchSpec, LossSpec, MetricSpec, ModelSpec, RowSpec, TaskCard
from finetune.recipe.section import Section
from finetune.tasks.text.preference_pairs import COLUMNS, PROMPTS

DEFAULT_METRICS = ("preference_accuracy", "reward_margin", "chosen_reward", "rejected_reward")


class RewardModelOptions(Section):
    max_length: int = Field(
        default=1024,
        ge=8,
        description="Maximum tokens of prompt and reply together; the model's own limit applies as well.",
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate",
        description="Longer pairs. truncate: cut the end; drop: skip the pair (counted); error: report a bad row.",
    )
    system: str = Field(default="", description="System prompt for conversations that have none.")
    tools: str = Field(
        default="", description="JSON file of tool schemas, for conversations that have none of their own."
    )
    centre: float = Field(
        default=0.0,
        ge=0,
        description="Weight of (r_chosen + r_rejected)^2 in the loss, which keeps rewards centered around 0; such as 0.01 "
        "(Eisenstein et al. 2023, arXiv 2312.09244).",
    )
    new_head: bool = Field(default=False, description="Train a new head even if the checkpoint has one.")


CARD = TaskCard(
    name="reward_model",
    title="reward modeling",
    summary="Train a model that scores replies, from pairs of a chosen and a rejected one.",
    rows=RowSpec(
        columns=COLUMNS,
        required=(PROMPTS, ("chosen",), ("rejected",)),
        targets=("rejected",),
        asked=(("chosen", "completion"),),
        asked_columns={"completion": "The reply, where there is only one."},
        unhashed=("input", "history", "tools"),
    ),
    metrics=MetricSpec(
        available=metrics_of("chosen_reward", "rejected_reward"), default=DEFAULT_METRICS, best="preference_accuracy"
    ),
    loss=LossSpec(unit="pair"),
    model=ModelSpec(auto_class="AutoModelForSequenceClassification", splits=("tensor",), embeds=True),
    batches=BatchSpec(
        micro_batch=8, packing="padding_free", packings=("none", "padding_free"), sequences=2, balance_window=16
    ),
    answers=AnswerSpec(pieces="texts", merges=("mean", "max", "head_tail")),
    options=RewardModelOptions,
)
