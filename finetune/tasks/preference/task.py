"""Preference tuning of language models: DPO, IPO, ORPO and SimPO from pairs of replies, KTO from single ones.

What the reference (the model as it was at step 0; with an adapter that is its base) says of every reply is computed once,
before training, and becomes columns of the examples: no second model in memory, under any ZeRO stage.

Shapes: B pairs, L tokens, V vocabulary; a batch holds 2B rows, the chosen replies first (KTO: B rows).
Unit of loss: one pair (KTO: one reply).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from finetune.data.bad_rows import BadRow
from finetune.data.table import Examples, Row, Table
from finetune.recipe.card import TaskCard
from finetune.recipe.recipe import Recipe
from finetune.recipe.section import Section
from finetune.tasks.causal_lm.task import CausalLM
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.task import Batch, Kit, Prediction
from finetune.tasks.text.chat import ChatEncoder, Message, ensure_template
from finetune.tasks.text.lengths import describe_lengths, pad_rows, usable_length
from finetune.tasks.text.preference_pairs import COLUMNS, PROMPTS, pair_texts, read_pair, read_reply
from finetune.tasks.text.selection import drop_marked
from finetune.tasks.text.supervised_tokens import supervised_logits, supervised_targets

if TYPE_CHECKING:
    import torch
    from torch import nn

    from finetune.tasks.preference.losses import Figures, Replies

METRICS = ("preference_accuracy", "reward_margin", "chosen_reward", "rejected_reward")
REFERENCE, REJECTED_REFERENCE = "reference", "rejected_reference"
REFERENCE_FREE = ("orpo", "simpo")
SHOWN_CHARACTERS = 400


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


CARD = TaskCard(
    name="preference",
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


class Preference:
    """The task; see Task for what each method promises."""

    card = CARD

    def read(self, recipe: Recipe, tables: dict[str, Table]) -> Kit:
        """Tokenizer with its chat template, encoded replies. Raises: UserError for bad rows."""
        from finetune.data.prepare.cache import publish
        from finetune.models.config import load_config
        from finetune.models.tokenizer import load_tokenizer

        options = _options(recipe)
        roles = ("completion",) if options.loss == "kto" else ("chosen", "rejected")
        tokenizer = load_tokenizer(recipe.model, lambda: pair_texts(tables["train"], roles), publish=publish)
        own = ensure_template(tokenizer, plain=options.template == "plain")
        kit = Kit(recipe, tokenizer, {}, tables)
        kit.facts["chat template"] = "the tokenizer's own" if own else "plain (Alpaca's headings)"
        limit = usable_length(options.max_length, tokenizer, load_config(recipe.model))
        encoder = _Encoder(tokenizer, options.loss == "kto", limit, options.on_long, options.system)
        for name, table in tables.items():
            kit.examples[name] = self._encode(kit, table, encoder)
        return kit

    def _encode(self, kit: Kit, table: Table, encoder: _Encoder) -> Examples:
        from finetune.data.prepare.encode import encode
        from finetune.models.tokenizer import fingerprint

        asked = [CARD.name, 1, encoder.single, encoder.limit, encoder.on_long, encoder.system]
        examples: Examples = encode(
            table,
            encoder,
            key=json.dumps([fingerprint(kit.processor), *asked]),
            on_bad_row=kit.recipe.data.on_bad_row,
            cost=_cost,
        )
        examples, dropped = drop_marked(examples)
        describe_lengths(kit, table.name, examples, encoder.limit * (1 if encoder.single else 2), dropped)
        return examples

    def build(self, kit: Kit) -> nn.Module:
        """The language model; all ranks call it."""
        return CausalLM().build(kit)

    def collate(self, kit: Kit, examples: Sequence[dict[str, Any]]) -> Batch:
        """Two pairs a and b -> input_ids and labels [4, L]: chosen a, chosen b, rejected a, rejected b; labels are -100
        but on the replies. targets "reference" and "rejected_reference": float32 [B], once they are known.
        """
        import numpy as np
        import torch

        from finetune.models.losses import IGNORE

        rows = [(example["input_ids"], example["span"]) for example in examples]
        if "rejected_input_ids" in examples[0]:
            rows += [(example["rejected_input_ids"], example["rejected_span"]) for example in examples]
        inputs, padding = pad_rows([{"input_ids": ids} for ids, _ in rows], kit.processor.pad_token_id)
        labels = np.full(tuple(inputs["input_ids"].shape), IGNORE, np.int64)
        for row, (ids, (start, end)) in zip(labels, rows, strict=True):
            row[start:end] = ids[start:end]
        targets: dict[str, Any] = supervised_targets(labels)
        for name in (REFERENCE, REJECTED_REFERENCE, "desirable"):
            if name in examples[0]:
                targets[name] = torch.tensor([float(example[name]) for example in examples])
        ids = tuple(int(example["id"]) for example in examples)
        return Batch(ids, inputs, targets, padding=padding, positions=labels.size)

    def weight(self, batch: Batch) -> int:
        """Pairs, or single replies."""
        return len(batch.ids)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [2B, L, V]."""
        return model(**batch.inputs, use_cache=False)

    def reference_columns(self, kit: Kit) -> tuple[str, ...]:
        """What the model at step 0 must say of each example before training; see Task."""
        loss = _options(kit.recipe).loss
        if loss in REFERENCE_FREE:
            return ()
        return (REFERENCE,) if loss == "kto" else (REFERENCE, REJECTED_REFERENCE)

    def reference_values(self, kit: Kit, outputs: Any, batch: Batch) -> list[dict[str, float]]:
        """Log-probabilities of whole replies."""
        names = self.reference_columns(kit)
        sums = [part.tolist() for part in _reply_logps(outputs, batch)[0].detach().chunk(len(names))]
        return [dict(zip(names, values, strict=True)) for values in zip(*sums, strict=True)]

    def loss_sum(self, kit: Kit, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over pairs, or single replies."""
        return self._figures(kit, outputs, batch)[0].sum()

    def _figures(self, kit: Kit, outputs: Any, batch: Batch) -> Figures:
        from finetune.tasks.preference import losses as losses

        options, smoothing = _options(kit.recipe), kit.recipe.training.label_smoothing
        beta = options.beta if options.beta != "auto" else 2.0 if options.loss == "simpo" else 0.1
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
            return losses.dpo(chosen, rejected, beta=beta, label_smoothing=smoothing)
        return {"ipo": losses.ipo, "orpo": losses.orpo}[options.loss](chosen, rejected, beta=beta)

    def predict(self, kit: Kit, outputs: Any, batch: Batch) -> list[Prediction]:
        """Both rewards (KTO: one, the other None); the replies as text, cut short."""
        figures = zip(*(part.detach().tolist() for part in self._figures(kit, outputs, batch)), strict=True)
        replies, count, weight = self._shown(kit, batch), len(batch.ids), 1
        found = []
        for row, (id, (loss, *rewards)) in enumerate(zip(batch.ids, figures, strict=True)):
            chosen, rejected = (reward if reward == reward else None for reward in rewards)  # NaN is no JSON
            shown = {"reply": replies[row]}
            if len(replies) > count:
                shown = {"chosen": replies[row], "rejected": replies[row + count]}
            found.append(Prediction(id, {"chosen_reward": chosen, "rejected_reward": rejected}, loss, weight, shown))
        return found

    def _shown(self, kit: Kit, batch: Batch) -> list[str]:
        labels = batch.targets["labels"].cpu()
        texts = kit.processor.batch_decode([row[row >= 0].tolist() for row in labels], skip_special_tokens=True)
        return [text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..." for text in texts]

    def sample(
        self, kit: Kit, model: nn.Module, examples: Sequence[dict[str, Any]], *, synced: bool
    ) -> list[dict[str, str]]:
        """Replies, and which of two the model prefers by its rewards (KTO: whether it likes the one)."""
        with eval_mode(model) as device:
            batch = self.collate(kit, examples).to(device)
            predictions = self.predict(kit, self.forward(model, batch), batch)
        return [
            {
                "id": str(prediction.id),
                "input": "\n\n".join(f"{name}: {text}" for name, text in prediction.shown.items()),
                "expected": expected,
                "predicted": predicted,
            }
            for prediction in predictions
            for expected, predicted in [_verdict(prediction)]
        ]


def _verdict(prediction: Prediction) -> tuple[str, str]:
    """(what the data says, what the rewards say)."""
    chosen, rejected = (prediction.values[name] for name in ("chosen_reward", "rejected_reward"))
    if "reply" not in prediction.shown:
        return "chosen", "chosen" if chosen > rejected else "rejected"
    reward = rejected if chosen is None else chosen
    return "undesirable" if chosen is None else "desirable", "desirable" if reward > 0 else "undesirable"


class _Encoder:
    """A row -> {"input_ids", "span": [start, end) of the reply, "rejected_input_ids", "rejected_span"}; single (KTO):
    {"input_ids", "span", "desirable": 0 or 1}. Picklable.
    """

    def __init__(self, tokenizer: Any, single: bool, limit: int, on_long: str, system: str) -> None:
        self.single, self.limit, self.on_long, self.system = single, limit, on_long, system
        self.chat = ChatEncoder(tokenizer)

    def __call__(self, row: Row) -> dict[str, Any]:
        if self.single:
            desirable = _desirable(row.get("label"))
            return {**self._reply(*read_reply(row, "completion", self.system)), "desirable": int(desirable)}
        before, chosen, rejected = read_pair(row, self.system)
        one, other = self._reply(before, chosen), self._reply(before, rejected)
        if not one["input_ids"] or not other["input_ids"]:
            one = other = {"input_ids": [], "span": []}
        return {**one, "rejected_input_ids": other["input_ids"], "rejected_span": other["span"]}

    def _reply(self, before: list[Message], reply: Message) -> dict[str, list[int]]:
        ids, spans = self.chat.encode([*before, reply])
        if not spans:
            raise BadRow("the reply holds no token")
        start, end = max(spans[-1][0], 1), spans[-1][1]
        if len(ids) > self.limit:
            if self.on_long == "drop":
                return {"input_ids": [], "span": []}
            if self.on_long == "error":
                raise BadRow(f"{len(ids)} tokens, more than options.max_length {self.limit}")
            if start >= self.limit:
                raise BadRow(f"the prompt has {start} tokens, longer than the limit: options.max_length {self.limit}")
            ids, end = ids[: self.limit], min(end, self.limit)
        return {"input_ids": ids, "span": [start, end]}


def _desirable(label: Any) -> bool:
    if isinstance(label, str) and label.strip().lower() in ("true", "false"):
        return label.strip().lower() == "true"
    if label in (0, 1) and label is not None:
        return bool(label)
    raise BadRow(
        f"label {label!r} is neither true nor false" if label is not None else "no label: is the reply desirable?"
    )


def _cost(example: dict[str, Any]) -> int:
    if "rejected_input_ids" not in example:
        return len(example["input_ids"])
    return 2 * max(len(example["input_ids"]), len(example["rejected_input_ids"]))


def _reply_logps(outputs: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability, tokens) of each row's reply: float32 [rows]."""
    import torch

    from finetune.models.losses import IGNORE, cross_entropy_rows

    labels = batch.targets["labels"]
    losses = cross_entropy_rows(supervised_logits(outputs, batch), batch.targets["wanted"])
    rows = batch.targets["places"] // labels.shape[1]
    sums = torch.zeros(len(labels), dtype=losses.dtype, device=losses.device).index_add(0, rows, -losses)
    return sums, (labels[:, 1:] != IGNORE).sum(dim=1).float()


def _replies(outputs: Any, batch: Batch, names: Sequence[str]) -> list[Replies]:
    from finetune.tasks.preference.losses import Replies

    sums, tokens = _reply_logps(outputs, batch)
    parts = zip(sums.chunk(len(names)), tokens.chunk(len(names)), names, strict=True)
    return [Replies(logps, count, batch.targets.get(name)) for logps, count, name in parts]


def _options(recipe: Recipe) -> PreferenceOptions:
    assert isinstance(recipe.options, PreferenceOptions)
    return recipe.options
