"""The card of causal_lm: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.metrics.catalogue import metrics_of
from finetune.recipe.card import BatchSpec, LossSpec, MetricSpec, ModelSpec, RowSpec, TaskCard
from finetune.recipe.section import Section


class CausalLMOptions(Section):
    format: Literal["auto", "alpaca", "prompt_completion", "messages", "text"] = Field(
        default="auto", description="Format of the rows. auto: detected from the columns of each row."
    )
    template: Literal["auto", "plain"] = Field(
        default="auto",
        description="auto: the chat template of the tokenizer, if it has one, otherwise plain. plain: Alpaca's headings; "
        "prompt and completion are used as they are. The template is saved with the tokenizer.",
    )
    system: str = Field(default="", description="System prompt for conversations that have none.")
    tools: str = Field(
        default="", description="JSON file of tool schemas, for conversations that have none of their own."
    )
    train_on: Literal["reply", "all"] = Field(
        default="reply",
        description="Supervised tokens. reply: the assistant's replies with their end-of-turn tokens. all: all tokens.",
    )
    max_length: int = Field(
        default=1024, ge=8, description="Maximum tokens per example; the model's own limit applies as well."
    )
    on_long: Literal["truncate", "drop", "split", "error"] = Field(
        default="truncate",
        description="Examples longer than max_length. truncate: cut the end; drop: skip the example (counted); split: continue "
        "with the rest as further examples; error: report a bad row.",
    )
    reply_length: int = Field(
        default=128,
        ge=1,
        description="Maximum generated tokens, for the samples in the report and for metrics that compare replies.",
    )


CARD = TaskCard(
    name="causal_lm",
    title="language modeling",
    summary="Fine-tune a language model on instructions, prompts, conversations or plain text.",
    rows=RowSpec(
        columns={
            "messages": "A conversation: a list of role and content (or from and value).",
            "instruction": "Alpaca: the instruction.",
            "input": "Alpaca: input of the instruction; may be empty.",
            "output": "Alpaca: the reply.",
            "prompt": "The prompt of the model: text, or a list of role and content.",
            "completion": "The expected continuation: text, or a list of role and content.",
            "text": "Plain text; all its tokens are supervised.",
            "system": "System prompt of this row.",
            "history": "Alpaca: earlier turns, a list of [question, answer].",
            "tools": "Schemas of the tools that the conversation may call: a list, or JSON text of one.",
        },
        required=(("messages", "instruction", "prompt", "text"),),
        targets=("output", "completion"),
        line_role="prompt",
        line_roles=("format", {"alpaca": "instruction", "text": "text"}),
        unhashed=("history", "tools"),
    ),
    metrics=MetricSpec(
        available=metrics_of("loss", "weight", "text", "reference_text"), default=("perplexity",), best="perplexity"
    ),
    loss=LossSpec(unit="token"),
    model=ModelSpec(auto_class="AutoModelForCausalLM", splits=("tensor",)),
    batches=BatchSpec(micro_batch=8, packing="padding_free", packings=("none", "padding_free", "packed")),
    options=CausalLMOptions,
)
