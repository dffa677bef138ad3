"""Reward models: a number for a reply, learnt from pairs of which one was preferred.

Loss of a pair: -log sigmoid(r_chosen - r_rejected) (Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1).

Shapes: B pairs, L tokens; a batch holds 2B rows, the chosen replies first. Unit of loss: one pair.
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
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.task import Batch, Kit, Prediction
from finetune.tasks.text.chat import ChatEncoder, Message, ensure_template
from finetune.tasks.text.lengths import describe_lengths, pad_rows, usable_length
from finetune.tasks.text.preference_pairs import COLUMNS, PROMPTS, last_words, pair_texts, read_pair
from finetune.tasks.text.selection import drop_marked
from finetune.tasks.text.sequence_models import as_seen, build_sequence_model, encode_texts

if TYPE_CHECKING:
    import torch
    from torch import nn

METRICS = ("preference_accuracy", "reward_margin", "chosen_reward", "rejected_reward")


class RewardModelOptions(Section):
    max_length: int = Field(
        default=1024, ge=8, description="Tokens of a prompt with its reply at most, the model's own limit besides."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate", description="A longer one: cut its end, leave the pair out (counted), or a bad row."
    )
    system: str = Field(default="", description="System prompt of every conversation that has none of its own.")
    centre: float = Field(
        default=0.0,
        ge=0,
        description="Weight of (r_chosen + r_rejected)^2 in the loss, which keeps rewards around 0 (such as 0.01; "
        "Eisenstein et al. 2023, arXiv 2312.09244).",
    )
    new_head: bool = Field(default=False, description="Train a new head, even if the checkpoint has one.")


CARD = TaskCard(
    name="reward_model",
    summary="Train a model that scores replies, from pairs of a chosen and a rejected one.",
    columns=COLUMNS,
    required=(PROMPTS, ("chosen",), ("rejected",)),
    metrics=METRICS,
    default_metrics=METRICS,
    best="preference_accuracy",
    unit="pair",
    options=RewardModelOptions,
    micro_batch=8,
    balance_window=16,
    splits=("tensor",),
)


class RewardModel:
    """The task; see Task for what each method promises."""

    card = CARD

    def read(self, recipe: Recipe, tables: dict[str, Table]) -> Kit:
        """Tokenizer with its chat template, encoded pairs. Raises: UserError for bad rows."""
        from finetune.data.prepare.cache import publish
        from finetune.models.config import load_config
        from finetune.models.tokenizer import load_tokenizer

        options = _options(recipe)
        tokenizer = load_tokenizer(recipe.model, lambda: pair_texts(tables["train"]), publish=publish)
        as_pair = not tokenizer.chat_template and tokenizer.sep_token is not None
        if not as_pair:
            ensure_template(tokenizer, plain=False)
        kit = Kit(recipe, tokenizer, {}, tables)
        kit.facts["chat template"] = "none: prompt and reply as a pair" if as_pair else "the tokenizer's, or plain"
        limit = usable_length(options.max_length, tokenizer, load_config(recipe.model))
        encoder = _Encoder(tokenizer, as_pair, limit, options.on_long, options.system)
        for name, table in tables.items():
            kit.examples[name] = self._encode(kit, table, encoder)
        return kit

    def _encode(self, kit: Kit, table: Table, encoder: _Encoder) -> Examples:
        from finetune.data.prepare.encode import encode
        from finetune.models.tokenizer import fingerprint

        asked = [CARD.name, 1, encoder.limit, encoder.on_long, encoder.system]
        examples: Examples = encode(
            table,
            encoder,
            key=json.dumps([fingerprint(kit.processor), *asked]),
            on_bad_row=kit.recipe.data.on_bad_row,
            cost=lambda example: 2 * max(len(example["input_ids"]), len(example["rejected_input_ids"])),
        )
        examples, dropped = drop_marked(examples)
        describe_lengths(kit, table.name, examples, 2 * encoder.limit, dropped)
        return examples

    def build(self, kit: Kit) -> nn.Module:
        """The body with a head of one number; all ranks call it."""
        settings = {"id2label": {0: "reward"}, "label2id": {"reward": 0}}
        return build_sequence_model(kit, settings, new_head=_options(kit.recipe).new_head)

    def collate(self, kit: Kit, examples: Sequence[dict[str, Any]]) -> Batch:
        """Two pairs a and b -> input_ids [4, L]: chosen a, chosen b, rejected a, rejected b."""
        rejected = [
            {key.removeprefix("rejected_"): value for key, value in example.items() if key.startswith("rejected_")}
            for example in examples
        ]
        inputs, padding = pad_rows([*examples, *rejected], kit.processor.pad_token_id)
        ids = tuple(int(example["id"]) for example in examples)
        return Batch(ids, inputs, padding=padding, positions=inputs["input_ids"].numel())

    def weight(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch.ids)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [2B, 1]."""
        return model(**batch.inputs)

    def loss_sum(self, kit: Kit, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over pairs."""
        return self._each(kit, outputs)[0].sum()

    def _each(self, kit: Kit, outputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(loss, chosen reward, rejected reward), each [B]."""
        from torch.nn import functional

        chosen, rejected = outputs.logits.squeeze(-1).float().chunk(2)
        centring = _options(kit.recipe).centre * (chosen + rejected) ** 2
        return centring - functional.logsigmoid(chosen - rejected), chosen, rejected

    def predict(self, kit: Kit, outputs: Any, batch: Batch) -> list[Prediction]:
        """Both rewards; both texts as the model saw them."""
        rows = zip(batch.ids, *(figure.detach().tolist() for figure in self._each(kit, outputs)), strict=True)
        texts, weight = as_seen(kit, batch, special=True), 1
        return [
            Prediction(
                id,
                {"chosen_reward": chosen, "rejected_reward": rejected},
                loss,
                weight,
                {"chosen": texts[row], "rejected": texts[row + len(batch.ids)]},
            )
            for row, (id, loss, chosen, rejected) in enumerate(rows)
        ]

    def sample(
        self, kit: Kit, model: nn.Module, examples: Sequence[dict[str, Any]], *, synced: bool
    ) -> list[dict[str, str]]:
        """Both replies, and which one the model prefers."""
        with eval_mode(model) as device:
            batch = self.collate(kit, examples).to(device)
            predictions = self.predict(kit, self.forward(model, batch), batch)
        return [
            {
                "id": str(prediction.id),
                "input": f"chosen: {prediction.shown['chosen']}\n\nrejected: {prediction.shown['rejected']}",
                "expected": "chosen",
                "predicted": "chosen"
                if prediction.values["chosen_reward"] > prediction.values["rejected_reward"]
                else "rejected",
            }
            for prediction in predictions
        ]


class _Encoder:
    """A row -> {"input_ids", "rejected_input_ids", and token_type_ids of both if the model takes them}; picklable.

    as_pair: prompt and reply as the two texts of an encoder such as BERT; else as a conversation.
    """

    def __init__(self, tokenizer: Any, as_pair: bool, limit: int, on_long: str, system: str) -> None:
        self.tokenizer, self.as_pair, self.limit, self.on_long, self.system = tokenizer, as_pair, limit, on_long, system
        self.chat = None if as_pair else ChatEncoder(tokenizer)

    def __call__(self, row: Row) -> dict[str, Any]:
        before, chosen, rejected = read_pair(row, self.system)
        good, bad = self._reply(before, chosen), self._reply(before, rejected)
        if good is None or bad is None:
            return {"input_ids": [], "rejected_input_ids": []}
        return {**good, **{f"rejected_{key}": value for key, value in bad.items()}}

    def _reply(self, before: list[Message], reply: Message) -> dict[str, list[int]] | None:
        if self.chat is None:
            return encode_texts(self.tokenizer, [last_words(before), reply["content"]], self.limit, self.on_long)
        ids = self.chat.encode_whole([*before, reply])
        if len(ids) > self.limit:
            if self.on_long == "drop":
                return None
            if self.on_long == "error":
                raise BadRow(f"{len(ids)} tokens, more than options.max_length {self.limit}")
        return {"input_ids": ids[: self.limit]}


def _options(recipe: Recipe) -> RewardModelOptions:
    assert isinstance(recipe.options, RewardModelOptions)
    return recipe.options
