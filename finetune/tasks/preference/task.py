"""Preference tuning of language models: DPO, IPO, ORPO and SimPO from pairs of replies, KTO from single ones.

The log-probabilities of every reply under the reference (the model as it was at step 0; with an adapter that is its base)
are computed once, before training, and become columns of the examples: no second model in memory, under any ZeRO stage.

Shapes: B pairs, N supervised tokens; a batch holds 2B sequences, the chosen replies first (KTO: B): tokens [2B, L] (padded
to the longest), or [1, T] without padding, where both replies of a pair stand behind one prompt.
Unit of loss: one pair (KTO: one reply).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune.data.prepare.cache import publish
from finetune.data.table import Examples, Row, Table
from finetune.models.config import load_config
from finetune.models.losses import IGNORE
from finetune.models.shared_tokens import SOURCE
from finetune.models.tokenizer import load_tokenizer
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch, RecordOptions, Score
from finetune.tasks.causal_lm.data import shorten, token_rows
from finetune.tasks.causal_lm.model import build_language_model, stop_tokens
from finetune.tasks.facts import Facts
from finetune.tasks.preference import losses
from finetune.tasks.preference.card import CARD, REFERENCE_FREE
from finetune.tasks.preference.data import num_tokens, reply_encoder
from finetune.tasks.preference.losses import Figures, Replies
from finetune.tasks.records import Fields, refuse_options, text_fields, text_record
from finetune.tasks.scored_answers import scored_answers
from finetune.tasks.task import Encoded
from finetune.tasks.text.chat import ensure_template
from finetune.tasks.text.dataset import text_dataset
from finetune.tasks.text.generation import generate_replies
from finetune.tasks.text.lengths import usable_length
from finetune.tasks.text.padding_free import collate_texts, is_concatenated, settle_packing, split_values
from finetune.tasks.text.preference_pairs import pair_texts, roles_read
from finetune.tasks.text.shared_prefixes import share_prefixes, shares_prefixes
from finetune.tasks.text.supervised_tokens import forward_with_loss, supervised_targets
from finetune.tasks.text.tools_file import load_tools
from finetune.tasks.text.turns import prompt_turns
from finetune.tasks.vision.drawing import Pictures

REFERENCE, REJECTED_REFERENCE = "reference", "rejected_reference"  # columns of reference log-probabilities


class Preference:
    """The task; see Task for what each method promises."""

    card = CARD

    def prepare(self, plan: Plan, tables: Mapping[str, Table], facts: Facts) -> TaskArtifacts:
        """Tokenizer with its chat template, and limits."""
        recipe = plan.recipe
        options: Any = recipe.options
        roles = ("completion",) if options.loss == "kto" else ("chosen", "rejected")
        tokenizer = load_tokenizer(recipe.model, lambda: pair_texts(tables["train"], roles), publish=publish)
        own = ensure_template(tokenizer, plain=options.template == "plain")
        facts["chat template"] = "the tokenizer's own" if own else "plain (Alpaca's headings)"
        limit = usable_length(options.max_length, tokenizer, load_config(recipe.model))
        settings = {
            **settle_packing(CARD, plan, limit, facts),
            "label_smoothing": recipe.training.label_smoothing,
            "beta": options.resolved_beta,
            "tools": load_tools(options.tools),
            "shared_prompts": len(roles) == 2 and shares_prefixes(plan),
        }
        return TaskArtifacts(CARD.name, options, tokenizer, settings=settings)

    def encode(self, artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[Encoded]:
        """Pairs, single replies, or prompts to be replied to; see ReplyEncoder."""
        return reply_encoder(artifacts).encode(rows, with_targets=with_targets)

    def dataset(self, plan: Plan, artifacts: TaskArtifacts, table: Table, facts: Facts) -> Examples:
        """A split, encoded through the cache."""
        encoder, limit = reply_encoder(artifacts), artifacts.settings["max_length"]
        return text_dataset(
            self,
            plan,
            artifacts,
            table,
            facts,
            key=[CARD.name, 2, encoder.settings],
            limit=f"{limit} tokens",
            reads=partial(roles_read, replies=("completion", "label") if encoder.single else ("chosen", "rejected")),
            cost=num_tokens,
        )

    def build(self, plan: Plan, artifacts: TaskArtifacts, facts: Facts) -> nn.Module:
        """The language model, which computes log-probabilities of replies in its forward pass. All ranks call it."""
        return build_language_model(plan, artifacts, facts, packed=is_concatenated(artifacts))

    def collate(self, artifacts: TaskArtifacts, examples: Sequence[dict[str, Any]]) -> Batch:
        """Two pairs a and b -> four sequences: chosen a, chosen b, rejected a, rejected b (see collate_texts); labels are -100
        except on the replies. targets "reference" and "rejected_reference": float32 [B], once they are known;
        "target_rows": the sequence of each supervised token, int64 [N]; "reply_tokens": those of each, float32 [2B].
        Without padding, what both sequences of a pair begin with is in the row once (see share_prefixes).
        """
        rows = [{"input_ids": example["input_ids"]} for example in examples]
        if "rejected_input_ids" in examples[0]:
            rows += [{"input_ids": example["rejected_input_ids"]} for example in examples]
        inputs, padding = collate_texts(artifacts, rows)
        whole = inputs["input_ids"].shape
        if len(rows) > len(examples) and is_concatenated(artifacts) and artifacts.settings.get("shared_prompts"):
            inputs = share_prefixes(inputs)
        positions = inputs["input_ids"].numel()
        ids = tuple(int(example["id"]) for example in examples)
        if "span" not in examples[0]:
            meta = {"reply_starts": [int(example["reply_start"]) for example in examples]}
            return Batch(ids, inputs, meta=meta, padding=padding, positions=positions)
        spans = [example["span"] for example in examples]
        if len(rows) > len(examples):
            spans += [example["rejected_span"] for example in examples]
        labels = np.full(whole, IGNORE, np.int64)
        for row, example, (start, end) in zip(split_values(labels, inputs), rows, spans, strict=True):
            row[start:end] = example["input_ids"][start:end]
        targets: dict[str, Any] = supervised_targets(labels)
        if SOURCE in inputs:  # the last token of a shared prompt predicts the first of both replies
            targets["target_positions"] = inputs[SOURCE][targets["target_positions"]]
        counts = torch.tensor([int(end) - int(start) for start, end in spans])
        targets["reply_tokens"] = counts.float()
        targets["target_rows"] = torch.repeat_interleave(torch.arange(len(rows)), counts)
        for name in (REFERENCE, REJECTED_REFERENCE, "desirable"):
            if name in examples[0]:
                targets[name] = torch.tensor([float(example[name]) for example in examples])
        return Batch(ids, inputs, targets, padding=padding, positions=positions)

    def weight(self, batch: Batch) -> int:
        """Pairs, or single replies."""
        return len(batch.ids)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """{"token_losses": [N], with gradients}; outputs with logits for a batch of prompts."""
        return forward_with_loss(model, batch, per_token=True)

    def reference_columns(self, artifacts: TaskArtifacts) -> tuple[str, ...]:
        """Log-probabilities of whole replies under the model at step 0; () for losses without a reference."""
        if artifacts.options.loss in REFERENCE_FREE:
            return ()
        return (REFERENCE,) if artifacts.options.loss == "kto" else (REFERENCE, REJECTED_REFERENCE)

    def reference_values(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[dict[str, float]]:
        """Log-probabilities of whole replies, one entry per example."""
        names = self.reference_columns(artifacts)
        sums = [part.tolist() for part in _reply_logprobs(outputs, batch)[0].detach().chunk(len(names))]
        return [dict(zip(names, values, strict=True)) for values in zip(*sums, strict=True)]

    def loss_sum(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over pairs, or single replies."""
        return self._figures(artifacts, outputs, batch)[0].sum()

    def _figures(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> Figures:
        """(loss, chosen reward, rejected reward), each float32 [B]."""
        options, beta = artifacts.options, artifacts.settings["beta"]
        if options.loss == "kto":
            (replies,) = _replies(outputs, batch, (REFERENCE,))
            return losses.kto(
                replies,
                batch.targets["desirable"] > 0,
                beta=beta,
                desirable_weight=options.desirable_weight,
                undesirable_weight=options.undesirable_weight,
            )
        chosen, rejected = _replies(outputs, batch, (REFERENCE, REJECTED_REFERENCE))
        if options.loss == "simpo":
            return losses.simpo(chosen, rejected, beta=beta, margin=options.margin)
        if options.loss == "dpo":
            return losses.dpo(chosen, rejected, beta=beta, label_smoothing=artifacts.settings["label_smoothing"])
        return {"ipo": losses.ipo, "orpo": losses.orpo}[options.loss](chosen, rejected, beta=beta)

    def decode(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Answer]:
        """The replies (or prompts) as text, shortened. What the model itself replies is `generate`'s work."""
        tokenizer, count = artifacts.processor, len(batch.ids)
        if not batch.targets:
            texts = [shorten(text) for text in tokenizer.batch_decode(token_rows(batch))]
            return [Answer(id, shown={"prompt": text}) for id, text in zip(batch.ids, texts, strict=True)]
        labels = split_values(batch.targets["labels"].cpu(), batch.inputs)
        rows = [row[row >= 0].tolist() for row in labels]
        texts = [shorten(text) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
        if len(texts) == count:
            return [Answer(id, shown={"reply": texts[row]}) for row, id in enumerate(batch.ids)]
        return [
            Answer(id, shown={"chosen": texts[row], "rejected": texts[row + count]}) for row, id in enumerate(batch.ids)
        ]

    def record_fields(self, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
        """The text written, and why it ends; see text_record."""
        refuse_options(options, CARD.name, takes=("logprobs",))
        return text_fields(options)

    def record(self, artifacts: TaskArtifacts, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        """See record_fields. Raises: BadRow for an answer with numbers that are not finite."""
        return text_record(answer.values, options)

    def score(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Score]:
        """The loss and both rewards (KTO: one of them is None)."""
        figures = self._figures(artifacts, outputs, batch)
        scores = []
        for id, loss, *rewards in zip(batch.ids, *(figure.detach().tolist() for figure in figures), strict=True):
            chosen, rejected = (reward if reward == reward else None for reward in rewards)  # JSON has no NaN
            scores.append(Score(id, loss, 1, {"chosen_reward": chosen, "rejected_reward": rejected}))
        return scores

    def metric_options(self, artifacts: TaskArtifacts) -> dict[str, Any]:
        """None."""
        return {}

    def generate(
        self, artifacts: TaskArtifacts, model: nn.Module, batch: Batch, *, synced: bool
    ) -> list[Mapping[str, str]]:
        """A reply to each prompt, for batches without targets."""
        tokenizer = artifacts.processor
        replies = generate_replies(
            model,
            tokenizer,
            token_rows(batch),
            new_tokens=artifacts.options.reply_length,
            stops=stop_tokens(tokenizer),
            synced=synced,
        )
        return [{"text": reply} for reply in replies]

    def sample(
        self,
        artifacts: TaskArtifacts,
        model: nn.Module,
        examples: Sequence[dict[str, Any]],
        *,
        synced: bool,
        pictures: Pictures | None = None,
    ) -> list[dict[str, str]]:
        """Prompts and replies, and which of two the model prefers by its rewards (KTO: whether it likes the one)."""
        scored = scored_answers(self, artifacts, model, examples)
        tokenizer, rows = artifacts.processor, []
        for (answer, score), example in zip(scored, examples, strict=True):
            expected, predicted = _verdict(answer, score)
            prompt = list(map(int, example["input_ids"][: int(example["span"][0])]))
            row = {"id": str(answer.id), "input": tokenizer.decode(prompt), **answer.shown}
            rows.append({**row, "expected": expected, "predicted": predicted, "turns": prompt_turns(tokenizer, prompt)})
        return rows


def _verdict(answer: Answer, score: Score) -> tuple[str, str]:
    """(what the data says, what the rewards say)."""
    chosen, rejected = (score.reference[name] for name in ("chosen_reward", "rejected_reward"))
    if "reply" not in answer.shown:
        return "chosen", "chosen" if chosen > rejected else "rejected"
    reward = rejected if chosen is None else chosen
    return "undesirable" if chosen is None else "desirable", "desirable" if reward > 0 else "undesirable"


def _reply_logprobs(outputs: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability, tokens) of each row's reply: float32 [rows]."""
    token_losses, tokens = outputs["token_losses"], batch.targets["reply_tokens"]
    sums = torch.zeros(len(tokens), dtype=token_losses.dtype, device=token_losses.device)
    return sums.index_add(0, batch.targets["target_rows"], -token_losses), tokens


def _replies(outputs: Any, batch: Batch, names: Sequence[str]) -> list[Replies]:
    sums, tokens = _reply_logprobs(outputs, batch)
    parts = zip(sums.chunk(len(names)), tokens.chunk(len(names)), names, strict=True)
    return [Replies(logprobs, count, batch.targets.get(name)) for logprobs, count, name in parts]


TASK = Preference()
