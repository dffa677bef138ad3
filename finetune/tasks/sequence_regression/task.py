"""Sequence regression: a number for a text, or for a pair of them, such as a rating or the similarity of two sentences.

Shapes: B examples; tokens [B, L] (padded to the longest), or [1, T] without padding. Unit of loss: one example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from finetune.data.prepare.cache import publish
from finetune.data.prepare.label_survey import column_name
from finetune.data.table import Examples, Row, Table, role_values
from finetune.models.config import load_config
from finetune.models.tokenizer import load_tokenizer
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch, RecordOptions, Score
from finetune.tasks.facts import Facts
from finetune.tasks.records import Fields, figure, refuse_options
from finetune.tasks.scored_answers import scored_answers
from finetune.tasks.sequence_regression.card import CARD
from finetune.tasks.sequence_regression.data import describe_targets, encode_rows
from finetune.tasks.task import Encoded
from finetune.tasks.text.building import build_sequence_model
from finetune.tasks.text.dataset import text_dataset
from finetune.tasks.text.inputs import input_texts, shown_text, shown_texts, training_texts
from finetune.tasks.text.lengths import usable_length
from finetune.tasks.text.padding_free import collate_texts, settle_packing
from finetune.tasks.vision.drawing import Pictures
from finetune.units import format_figure

LOSSES: dict[str, Any] = {"mse": functional.mse_loss, "mae": functional.l1_loss, "huber": functional.huber_loss}


class SequenceRegression:
    """The task; see Task for what each method promises."""

    card = CARD

    def prepare(self, plan: Plan, tables: Mapping[str, Table], facts: Facts) -> TaskArtifacts:
        """The tokenizer and the length limit."""
        recipe = plan.recipe
        options: Any = recipe.options
        tokenizer = load_tokenizer(recipe.model, lambda: training_texts(tables["train"]), publish=publish)
        limit = usable_length(options.max_length, tokenizer, load_config(recipe.model))
        return TaskArtifacts(CARD.name, options, tokenizer, settings=settle_packing(CARD, plan, limit, facts))

    def encode(self, artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[Encoded]:
        """Texts as token ids; see encode_rows."""
        return encode_rows(artifacts, rows, with_targets=with_targets)

    def dataset(self, plan: Plan, artifacts: TaskArtifacts, table: Table, facts: Facts) -> Examples:
        """A split, encoded through the cache."""
        if table.name == "train" and (
            note := describe_targets(role_values(table, "label"), column_name(table, "label"))
        ):
            facts.notes.append(f"train: {note}")
        limit = artifacts.settings["max_length"]
        key = [CARD.name, 1, limit, artifacts.options.on_long]
        return text_dataset(self, plan, artifacts, table, facts, key=key, limit=f"{limit} tokens", shown=shown_text)

    def build(self, plan: Plan, artifacts: TaskArtifacts, facts: Facts) -> nn.Module:
        """The body with a head of one number; all ranks call it."""
        settings = {"id2label": {0: "value"}, "label2id": {"value": 0}, "problem_type": "regression"}
        return build_sequence_model(plan, artifacts, facts, settings, new_head=artifacts.options.new_head)

    def collate(self, artifacts: TaskArtifacts, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"input_ids": [101, 7, 102], "label": 4.5}] -> input_ids [[101, 7, 102]], labels [4.5]. See collate_texts."""
        inputs, padding = collate_texts(artifacts, examples)
        targets = {}
        if "label" in examples[0]:
            targets["labels"] = torch.tensor([float(example["label"]) for example in examples], dtype=torch.float32)
        ids = tuple(int(example["id"]) for example in examples)
        meta: dict[str, Any] = dict(shown_texts(examples))
        return Batch(ids, inputs, targets, meta, padding=padding, positions=inputs["input_ids"].numel())

    def weight(self, batch: Batch) -> int:
        """Examples."""
        return len(batch.ids)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [B, 1]."""
        return model(**batch.inputs)

    def loss_sum(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over examples."""
        return self._losses(artifacts, outputs, batch).sum()

    def _losses(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> torch.Tensor:
        """float32 [B]."""
        values = outputs.logits.squeeze(-1).float()
        targets = batch.targets["labels"].to(values.dtype)  # before torch 2.13, a loss of two dtypes has no gradient
        return LOSSES[artifacts.options.loss](values, targets, reduction="none")

    def decode(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Answer]:
        """The number; the text."""
        values = outputs.logits.detach().squeeze(-1).float().tolist()
        rows = zip(batch.ids, values, input_texts(artifacts, batch), strict=True)
        return [Answer(id, {"value": value}, {"text": text}) for id, value, text in rows]

    def record_fields(self, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
        """The number."""
        refuse_options(options, CARD.name, takes=())
        return {"value": "number"}

    def record(self, artifacts: TaskArtifacts, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        """See record_fields. Raises: BadRow for an answer with numbers that are not finite."""
        return {"value": figure(answer.values["value"])}

    def score(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Score]:
        """Target and loss."""
        losses = self._losses(artifacts, outputs, batch).detach().tolist()
        rows = zip(batch.ids, losses, batch.targets["labels"].tolist(), strict=True)
        return [Score(id, loss, 1, {"target": target}) for id, loss, target in rows]

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
        """Texts with the expected and the predicted number."""
        return [
            {
                "id": str(answer.id),
                "input": str(answer.shown["text"]),
                "expected": format_figure(score.reference["target"]),
                "predicted": format_figure(answer.values["value"]),
            }
            for answer, score in scored_answers(self, artifacts, model, examples)
        ]


TASK = SequenceRegression()
