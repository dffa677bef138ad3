"""Causal language models: supervised fine-tuning on instructions, prompts, conversations and plain text.

Shapes: B examples, L tokens (padded on the right to the longest of the micro-batch), N supervised tokens, V vocabulary.
Unit of loss: one supervised token, that is a label at position 1 or later which is not masked (-100); the token at
position t is predicted from those before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from finetune.data.prepare.cache import publish
from finetune.data.table import Examples, Row, Table
from finetune.models.config import load_config
from finetune.models.tokenizer import load_tokenizer
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch, RecordOptions, Score
from finetune.tasks.causal_lm.card import CARD
from finetune.tasks.causal_lm.data import (
    collate_concatenated,
    collate_padded,
    encode_rows,
    row_encoder,
    shorten,
    target_rows,
    token_rows,
    training_texts,
)
from finetune.tasks.causal_lm.model import build_language_model, stop_tokens
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.facts import Facts
from finetune.tasks.records import Fields, refuse_options, text_fields, text_record
from finetune.tasks.task import Encoded
from finetune.tasks.text.chat import ensure_template
from finetune.tasks.text.dataset import text_dataset
from finetune.tasks.text.generation import generate_replies
from finetune.tasks.text.lengths import usable_length
from finetune.tasks.text.padding_free import is_concatenated, settle_packing
from finetune.tasks.text.reply_limits import expected_reply, long_reply_notice
from finetune.tasks.text.supervised_tokens import forward_with_loss
from finetune.tasks.text.tools_file import load_tools
from finetune.tasks.text.turns import prompt_turns
from finetune.tasks.vision.drawing import Pictures


class CausalLM:
    """The task; see Task for what each method promises."""

    card = CARD

    def prepare(self, plan: Plan, tables: Mapping[str, Table], facts: Facts) -> TaskArtifacts:
        """Tokenizer with its chat template, and limits."""
        recipe = plan.recipe
        options: Any = recipe.options
        tokenizer = load_tokenizer(
            recipe.model, lambda: training_texts(tables["train"], options.format), publish=publish
        )
        own_template = ensure_template(tokenizer, plain=options.template == "plain")
        facts["chat template"] = "the tokenizer's own" if own_template else "plain (Alpaca's headings)"
        limit = usable_length(options.max_length, tokenizer, load_config(recipe.model))
        settings = {
            **settle_packing(CARD, plan, limit, facts),
            "own_template": own_template,
            "tools": load_tools(options.tools),
        }
        return TaskArtifacts(CARD.name, options, tokenizer, settings=settings)

    def encode(self, artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[Encoded]:
        """Conversations as token ids with supervised spans, or prompts alone; see encode_rows."""
        return encode_rows(artifacts, rows, with_targets=with_targets)

    def dataset(self, plan: Plan, artifacts: TaskArtifacts, table: Table, facts: Facts) -> Examples:
        """A split, encoded through the cache."""
        encoder, limit = row_encoder(artifacts), artifacts.settings["max_length"]
        new_tokens = artifacts.options.reply_length if table.name != "train" else None
        return text_dataset(
            self,
            plan,
            artifacts,
            table,
            facts,
            key=[CARD.name, 3, encoder.settings, new_tokens],
            limit=f"{limit} tokens",
            reads=encoder.roles_read,
            split_at=limit if encoder.on_long == "split" else 0,
            notice=partial(long_reply_notice, new_tokens=new_tokens) if new_tokens else None,
        )

    def build(self, plan: Plan, artifacts: TaskArtifacts, facts: Facts) -> nn.Module:
        """The language model, which computes its loss in its forward pass. All ranks call it."""
        return build_language_model(plan, artifacts, facts, packed=is_concatenated(artifacts))

    def collate(self, artifacts: TaskArtifacts, examples: Sequence[dict[str, Any]]) -> Batch:
        """Padded rows, or one row of concatenated examples where the artifacts' packing says so."""
        if is_concatenated(artifacts):
            return collate_concatenated(examples)
        return collate_padded(examples, artifacts.processor.pad_token_id)

    def weight(self, batch: Batch) -> int:
        """Supervised tokens."""
        return int(batch.targets["units"])

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """{"loss_sum": [], "token_losses": [N]}; outputs with logits [B, L, V] for a batch without targets."""
        return forward_with_loss(model, batch)

    def loss_sum(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over supervised tokens."""
        return outputs["loss_sum"]

    def decode(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Answer]:
        """The text of each example, shortened. What the model replies is `generate`'s work."""
        texts = artifacts.processor.batch_decode(token_rows(batch))
        return [Answer(id, shown={"text": shorten(text)}) for id, text in zip(batch.ids, texts, strict=True)]

    def record_fields(self, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
        """The text written, and why it ends; see text_record."""
        refuse_options(options, CARD.name, takes=("logprobs",))
        return text_fields(options)

    def record(self, artifacts: TaskArtifacts, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        """See record_fields. Raises: BadRow for an answer with numbers that are not finite."""
        return text_record(answer.values, options)

    def score(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Score]:
        """Loss and number of supervised tokens of each example."""
        each, rows = outputs["token_losses"].detach(), target_rows(batch)
        losses = torch.zeros(len(batch.ids), dtype=torch.float64, device=each.device)
        sums = losses.index_add(0, rows, each.double()).tolist()
        counts = torch.bincount(rows, minlength=len(sums)).tolist()
        return [Score(id, loss, count) for id, loss, count in zip(batch.ids, sums, counts, strict=True)]

    def metric_options(self, artifacts: TaskArtifacts) -> dict[str, Any]:
        """None."""
        return {}

    def generate(
        self, artifacts: TaskArtifacts, model: nn.Module, batch: Batch, *, synced: bool
    ) -> list[Mapping[str, str]]:
        """The last reply of each example, generated from what stands before it; with targets also the whole expected one."""
        tokenizer, rows, starts = artifacts.processor, token_rows(batch), batch.meta["reply_starts"]
        prompts = [row[:start] for row, start in zip(rows, starts, strict=True)]
        replies = generate_replies(
            model,
            tokenizer,
            prompts,
            new_tokens=artifacts.options.reply_length,
            stops=stop_tokens(tokenizer),
            synced=synced,
        )
        if not batch.targets:
            return [{"text": reply} for reply in replies]
        texts = tokenizer.batch_decode([ids.tolist() for ids in batch.meta["references"]], skip_special_tokens=True)
        return [{"text": reply, "reference_text": text.strip()} for reply, text in zip(replies, texts, strict=True)]

    def sample(
        self,
        artifacts: TaskArtifacts,
        model: nn.Module,
        examples: Sequence[dict[str, Any]],
        *,
        synced: bool,
        pictures: Pictures | None = None,
    ) -> list[dict[str, str]]:
        """The last reply of each example, generated greedily from what stands before it, beside the expected one."""
        tokenizer = artifacts.processor
        prompts = [example["input_ids"][: example["reply_start"]].tolist() for example in examples]
        expected = [[int(token) for token in expected_reply(example)] for example in examples]
        with eval_mode(model):
            replies = generate_replies(
                model,
                tokenizer,
                prompts,
                new_tokens=artifacts.options.reply_length,
                stops=stop_tokens(tokenizer),
                synced=synced,
            )
        return [
            {
                "id": str(example["id"]),
                "input": tokenizer.decode(prompt),
                "expected": tokenizer.decode(reply_ids, skip_special_tokens=True).strip(),
                "predicted": reply,
                "turns": prompt_turns(tokenizer, prompt),
            }
            for example, prompt, reply_ids, reply in zip(examples, prompts, expected, replies, strict=True)
        ]


TASK = CausalLM()
