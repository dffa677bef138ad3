"""Sequence regression: a number for a text, or for a pair of them, such as a rating or how alike two sentences are.

Shapes: B examples, L tokens (padded to the longest of the micro-batch).
Unit of loss: one example.
"""

from __future__ import annotations

import json
import math
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
from finetune.tasks.text.lengths import describe_lengths, pad_rows, usable_length
from finetune.tasks.text.selection import drop_marked
from finetune.tasks.text.sequence_models import (
    as_seen,
    build_sequence_model,
    encode_texts,
    text_and_pair,
    training_texts,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

METRICS = ("pearson", "spearman", "mse", "mae")


class SequenceRegressionOptions(Section):
    max_length: int = Field(
        default=256, ge=4, description="Tokens of an example at most, the model's own limit besides."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate", description="A longer text: cut its end, leave the example out (counted), or a bad row."
    )
    loss: Literal["mse", "mae", "huber"] = Field(
        default="mse", description="Squared error, absolute error, or squared up to 1 and absolute beyond (Huber)."
    )
    new_head: bool = Field(default=False, description="Train a new head, even if the checkpoint has one.")


CARD = TaskCard(
    name="sequence_regression",
    summary="Predict a number for a text, or for a pair of texts.",
    columns={"text": "The text.", "text_pair": "A second text, to be compared with it.", "label": "The number."},
    required=(("text",), ("label",)),
    metrics=METRICS,
    default_metrics=METRICS,
    best="pearson",
    unit="example",
    options=SequenceRegressionOptions,
    balance_window=16,
)


class SequenceRegression:
    """The task; see Task for what each method promises."""

    card = CARD

    def read(self, recipe: Recipe, tables: dict[str, Table]) -> Kit:
        """Tokenizer, encoded examples. Raises: UserError for bad rows."""
        from finetune.data.prepare.cache import publish
        from finetune.models.config import load_config
        from finetune.models.tokenizer import load_tokenizer

        options = _options(recipe)
        tokenizer = load_tokenizer(recipe.model, lambda: training_texts(tables["train"]), publish=publish)
        kit = Kit(recipe, tokenizer, {}, tables)
        limit = usable_length(options.max_length, tokenizer, load_config(recipe.model))
        for name, table in tables.items():
            kit.examples[name] = self._encode(kit, table, _Encoder(tokenizer, limit, options.on_long))
        return kit

    def _encode(self, kit: Kit, table: Table, encoder: _Encoder) -> Examples:
        from finetune.data.prepare.encode import encode
        from finetune.models.tokenizer import fingerprint

        examples: Examples = encode(
            table,
            encoder,
            key=json.dumps([fingerprint(kit.processor), CARD.name, 1, encoder.limit, encoder.on_long]),
            on_bad_row=kit.recipe.data.on_bad_row,
            cost=lambda example: len(example["input_ids"]),
        )
        examples, dropped = drop_marked(examples)
        describe_lengths(kit, table.name, examples, encoder.limit, dropped)
        return examples

    def build(self, kit: Kit) -> nn.Module:
        """The body with a head of one number; all ranks call it."""
        settings = {"id2label": {0: "value"}, "label2id": {"value": 0}, "problem_type": "regression"}
        return build_sequence_model(kit, settings, new_head=_options(kit.recipe).new_head)

    def collate(self, kit: Kit, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"input_ids": [101, 7, 102], "label": 4.5}] -> input_ids [[101, 7, 102, 0, 0, 0, 0, 0]], labels [4.5]."""
        import torch

        inputs, padding = pad_rows(examples, kit.processor.pad_token_id)
        labels = torch.tensor([float(example["label"]) for example in examples], dtype=torch.float32)
        ids = tuple(int(example["id"]) for example in examples)
        return Batch(ids, inputs, {"labels": labels}, padding=padding, positions=inputs["input_ids"].numel())

    def weight(self, batch: Batch) -> int:
        """Examples."""
        return len(batch.ids)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [B, 1]."""
        return model(**batch.inputs)

    def loss_sum(self, kit: Kit, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over examples."""
        return self._each(kit, outputs, batch).sum()

    def _each(self, kit: Kit, outputs: Any, batch: Batch) -> torch.Tensor:
        from torch.nn import functional

        kinds: dict[str, Any] = {"mse": functional.mse_loss, "mae": functional.l1_loss, "huber": functional.huber_loss}
        values = outputs.logits.squeeze(-1).float()
        return kinds[_options(kit.recipe).loss](values, batch.targets["labels"], reduction="none")

    def predict(self, kit: Kit, outputs: Any, batch: Batch) -> list[Prediction]:
        """Value and target; the text as the model saw it."""
        values, losses = outputs.logits.detach().squeeze(-1).float().tolist(), self._each(kit, outputs, batch).tolist()
        rows = zip(batch.ids, values, batch.targets["labels"].tolist(), losses, as_seen(kit, batch), strict=True)
        weight = 1
        return [
            Prediction(id, {"value": value, "target": target}, loss, weight, {"text": text})
            for id, value, target, loss, text in rows
        ]

    def sample(
        self, kit: Kit, model: nn.Module, examples: Sequence[dict[str, Any]], *, synced: bool
    ) -> list[dict[str, str]]:
        """Texts with the expected and the predicted number."""
        with eval_mode(model) as device:
            batch = self.collate(kit, examples).to(device)
            predictions = self.predict(kit, self.forward(model, batch), batch)
        return [
            {
                "id": str(prediction.id),
                "input": str(prediction.shown["text"]),
                "expected": f"{prediction.values['target']:.1f}",
                "predicted": f"{prediction.values['value']:.1f}",
            }
            for prediction in predictions
        ]


class _Encoder:
    """A row -> {"input_ids", "token_type_ids" if the model takes them, "label"}; picklable."""

    def __init__(self, tokenizer: Any, limit: int, on_long: str) -> None:
        self.tokenizer, self.limit, self.on_long = tokenizer, limit, on_long

    def __call__(self, row: Row) -> dict[str, Any]:
        label = _number(row["label"])
        encoded = encode_texts(self.tokenizer, text_and_pair(row), self.limit, self.on_long)
        return {**(encoded or {"input_ids": []}), "label": label}


def _number(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"label {value!r} is not a number")
    return number


def _options(recipe: Recipe) -> SequenceRegressionOptions:
    assert isinstance(recipe.options, SequenceRegressionOptions)
    return recipe.options
