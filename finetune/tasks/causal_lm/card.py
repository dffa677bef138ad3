"""The card of causal_lm: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.recipe.card import TaskCard
from finetune.recipe.section import Section


class CausalLMOptions(Section):
    format: Literal["auto", "alpaca", "prompt_completion", "messages", "text"] = Field(
        default="auto", description="What a row is; auto: by the columns that it has."
    )
    template: Literal["auto", "plain"] = Field(
        default="auto",
        description="auto: the tokenizer's chat template where it has one; plain: Alpaca's headings, and prompt and "
        "completion as they are. Either is saved with the tokenizer.",
    )
    system: str = Field(default="", description="System prompt of every conversation that has none of its own.")
    train_on: Literal["reply", "all"] = Field(
        default="reply", description="Tokens that are learnt: the assistant's replies with their end, or all."
    )
    max_length: int = Field(default=1024, ge=8, description="Tokens of an example at most, the model's limit besides.")
    on_long: Literal["truncate", "drop", "split", "error"] = Field(
        default="truncate",
        description="A longer one: cut its end, leave the example out (counted), go on with the rest as examples of "
        "their own, or a bad row.",
    )
    reply_length: int = Field(
        default=128,
        ge=1,
        description="Tokens generated at most: for samples in the report, and for metrics that judge replies.",
    )


CARD = TaskCard(
    name="causal_lm",
    auto_model="AutoModelForCausalLM",
    summary="Fine-tune a language model on instructions, prompts, conversations or plain text.",
    columns={
        "messages": "A conversation: a list of role and content (or from and value).",
        "instruction": "Alpaca: what is asked.",
        "input": "Alpaca: what it is asked of; may be empty.",
        "output": "Alpaca: the reply.",
        "prompt": "What the model is given.",
        "completion": "What it should go on with.",
        "text": "Plain text, learnt whole.",
        "system": "System prompt of this row.",
    },
    required=(("messages", "instruction", "prompt", "text"),),
    metrics=("perplexity", "exact_match", "rouge1", "rouge2", "rouge_l", "chrf", "sacrebleu"),
    default_metrics=("perplexity",),  # the others judge replies, which must be generated first: slow
    best="perplexity",
    unit="token",
    options=CausalLMOptions,
    micro_batch=8,
    packing="padding_free",
    packings=("none", "padding_free", "packed"),
    splits=("tensor",),
)
