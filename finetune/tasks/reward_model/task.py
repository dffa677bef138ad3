"""Reward models: a number for a reply, learned from pairs of which one was preferred.

Loss of a pair: -log sigmoid(r_chosen - r_rejected) (Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1).

Shapes: B pairs; a batch holds 2B sequences, the chosen replies first (B for single replies without targets): tokens [2B, L]
(padded to the longest), or [1, T] without padding.
Unit of loss: one pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from finetune.data.prepare.cache import publish
from finetune.data.table import Examples, Row, Table
from finetune.models.config import load_config
from finetune.models.tokenizer import load_tokenizer
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch, RecordOptions, Score
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.facts import Facts
from finetune.tasks.records import Fields, figure, refuse_options
from finetune.tasks.reward_model.card import CARD
from finetune.tasks.reward_model.data import pair_cost, pair_encoder
from finetune.tasks.task import Encoded
from finetune.tasks.text.building import build_sequence_model
from finetune.tasks.text.chat import ensure_template
from finetune.tasks.text.dataset import text_dataset
from finetune.tasks.text.inputs import SHOWN, input_texts, shortened, shown_texts
from finetune.tasks.text.lengths import usable_length
from finetune.tasks.text.padding_free import collate_texts, settle_packing
from finetune.tasks.text.preference_pairs import pair_texts, roles_read
from finetune.tasks.text.tools_file import load_tools
from finetune.tasks.vision.drawing import Pictures


class RewardModel:
    """The task; see Task for what each method promises."""

    card = CARD

    def prepare(self, plan: Plan, tables: Mapping[str, Table], facts: Facts) -> TaskArtifacts:
        """Tokenizer with its chat template, unless it takes prompt and reply as a pair of texts."""
        recipe = plan.recipe
        options: Any = recipe.options
        tokenizer = load_tokenizer(recipe.model, lambda: pair_texts(tables["train"]), publish=publish)
        as_pair = not tokenizer.chat_template and tokenizer.sep_token is not None
        if not as_pair:
            ensure_template(tokenizer, plain=False)
        facts["chat template"] = "none: prompt and reply as a pair" if as_pair else "the tokenizer's, or plain"
        limit = usable_length(options.max_length, tokenizer, load_config(recipe.model))
        settings = {**settle_packing(CARD, plan, limit, facts), "as_pair": as_pair, "tools": load_tools(options.tools)}
        return TaskArtifacts(CARD.name, options, tokenizer, settings=settings)

    def encode(self, artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[Encoded]:
        """Pairs of replies, or single ones; see PairEncoder."""
        return pair_encoder(artifacts).encode(rows, with_targets=with_targets)

    def dataset(self, plan: Plan, artifacts: TaskArtifacts, table: Table, facts: Facts) -> Examples:
        """A split, encoded through the cache."""
        limit = artifacts.settings["max_length"]
        return text_dataset(
            self,
            plan,
            artifacts,
            table,
            facts,
            key=[CARD.name, 2, pair_encoder(artifacts).settings],
            limit=f"{limit} tokens",
            reads=roles_read,
            shown=pair_encoder(artifacts).shown,
            cost=pair_cost,
        )

    def build(self, plan: Plan, artifacts: TaskArtifacts, facts: Facts) -> nn.Module:
        """The body with a head of one number; all ranks call it."""
        settings = {"id2label": {0: "reward"}, "label2id": {"reward": 0}}
        return build_sequence_model(plan, artifacts, facts, settings, new_head=artifacts.options.new_head)

    def collate(self, artifacts: TaskArtifacts, examples: Sequence[dict[str, Any]]) -> Batch:
        """Two pairs a and b -> four sequences: chosen a, chosen b, rejected a, rejected b. See collate_texts."""
        rows: list[dict[str, Any]] = list(examples)
        is_pair = "rejected_input_ids" in examples[0]
        if is_pair:
            rows += [
                {key.removeprefix("rejected_"): value for key, value in example.items() if key.startswith("rejected_")}
                for example in examples
            ]
        inputs, padding = collate_texts(artifacts, rows)
        ids = tuple(int(example["id"]) for example in examples)
        targets = {"pairs": True} if is_pair else {}
        positions = inputs["input_ids"].numel()
        return Batch(ids, inputs, targets, meta={**shown_texts(examples)}, padding=padding, positions=positions)

    def weight(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch.ids)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [2B, 1]."""
        return model(**batch.inputs)

    def loss_sum(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over pairs."""
        return self._losses(artifacts, outputs).sum()

    def _losses(self, artifacts: TaskArtifacts, outputs: Any) -> torch.Tensor:
        """float32 [B]."""
        chosen, rejected = outputs.logits.squeeze(-1).float().chunk(2)
        centring = artifacts.options.centre * (chosen + rejected) ** 2
        return centring - functional.logsigmoid(chosen - rejected)

    def decode(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Answer]:
        """Both rewards, or the one of a single reply; the texts as they are written, else as the model saw them."""
        rewards, count = outputs.logits.detach().squeeze(-1).float().tolist(), len(batch.ids)
        if len(rewards) == count:
            texts = input_texts(artifacts, batch, special=True)
            return [Answer(id, {"reward": rewards[row]}, {"reply": texts[row]}) for row, id in enumerate(batch.ids)]
        return [
            Answer(id, {"chosen_reward": rewards[row], "rejected_reward": rewards[row + count]}, shown)
            for row, (id, shown) in enumerate(zip(batch.ids, _shown_pairs(artifacts, batch), strict=True))
        ]

    def record_fields(self, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
        """The reward of the reply, and of the rejected one for rows that have it."""
        refuse_options(options, CARD.name, takes=())
        return {"reward": "number", "rejected_reward": "number"}

    def record(self, artifacts: TaskArtifacts, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        """See record_fields. Raises: BadRow for an answer with numbers that are not finite."""
        values = answer.values
        if "reward" in values:
            return {"reward": figure(values["reward"])}
        return {"reward": figure(values["chosen_reward"]), "rejected_reward": figure(values["rejected_reward"])}

    def score(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Score]:
        """The loss of each pair."""
        losses = self._losses(artifacts, outputs).detach().tolist()
        return [Score(id, loss, 1) for id, loss in zip(batch.ids, losses, strict=True)]

    def metric_options(self, artifacts: TaskArtifacts) -> dict[str, Any]:
        """None."""
        return {}

    def sample(
        self,
        artifacts: TaskArtifacts,
        model: nn.Module,
        examples: Sequence[dict[str, Any]],
        *,
        synced: bool,
        pictures: Pictures | None = None,
    ) -> list[dict[str, str]]:
        """Prompts and both replies, and which one the model prefers."""
        with eval_mode(model) as device:
            batch = self.collate(artifacts, examples).to(device)
            answers = self.decode(artifacts, self.forward(model, batch), batch)
        written = batch.meta.get(SHOWN) or [{"turns": []}] * len(answers)
        rows = []
        for answer, texts in zip(answers, written, strict=True):
            prefers = answer.values["chosen_reward"] > answer.values["rejected_reward"]
            verdict = {"expected": "chosen", "predicted": "chosen" if prefers else "rejected"}
            turns = json.dumps(texts["turns"], ensure_ascii=False) if texts["turns"] else ""
            rows.append({"id": str(answer.id), **answer.shown, **verdict, "turns": turns})
        return rows


def _shown_pairs(artifacts: TaskArtifacts, batch: Batch) -> list[dict[str, str]]:
    """{"input": what the replies answer, "chosen", "rejected"} of each pair; as the model saw them, with the prompt in both
    replies, where the examples do not have their texts with them.
    """
    if SHOWN in batch.meta:
        return [
            {
                "input": shortened("\n\n".join(words for _, words in texts["turns"])),
                "chosen": texts["chosen"],
                "rejected": texts["rejected"],
            }
            for texts in batch.meta[SHOWN]
        ]
    both, count = input_texts(artifacts, batch, special=True), len(batch.ids)
    return [{"chosen": both[row], "rejected": both[row + count]} for row in range(count)]


TASK = RewardModel()
