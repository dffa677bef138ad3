"""Text classification: one text or a pair of them, one label each or several.

Shapes: B examples, L tokens (padded to the longest of the micro-batch), C classes.
Unit of loss: one example. With several labels an example's loss is the mean over the C classes of the binary
cross-entropy, so that the learning rate need not follow C.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from finetune.data.table import Examples, Row, Table
from finetune.recipe.card import TaskCard
from finetune.recipe.recipe import Recipe
from finetune.recipe.section import Section
from finetune.tasks.classes import (
    DEFAULT_METRICS,
    METRICS,
    Classes,
    class_predictions,
    classification_loss_sum,
    decide_classes,
    label_tensor,
    name_of,
    named,
    trained_labels,
)
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.task import Batch, Kit, Prediction
from finetune.tasks.text.lengths import describe_lengths, pad_rows, usable_length
from finetune.tasks.text.selection import drop_marked
from finetune.tasks.text.sequence_models import (
    HEAD,
    as_seen,
    build_sequence_model,
    encode_texts,
    text_and_pair,
    training_texts,
)

if TYPE_CHECKING:
    import torch
    from torch import nn


class TextClassificationOptions(Section):
    problem: Literal["single_label", "multi_label"] = Field(
        default="single_label", description="One label an example, or any number (a list, or text with | between)."
    )
    max_length: int = Field(
        default=256, ge=4, description="Tokens of an example at most, the model's own limit besides."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate", description="A longer text: cut its end, leave the example out (counted), or a bad row."
    )
    labels: list[str] = Field(
        default_factory=list,
        description="Names of the classes in order, where the data holds 0, 1, ...; or all there may be. Default: as found.",
    )
    new_head: bool = Field(default=False, description="Train a new head, even if the checkpoint has one.")


CARD = TaskCard(
    name="text_classification",
    summary="Classify a text, or a pair of texts, into one class or several.",
    columns={
        "text": "The text.",
        "text_pair": "A second text, for pairs such as premise and hypothesis.",
        "label": "The class: a name or a number; a list of them, or text with | between, for multi_label.",
    },
    required=(("text",), ("label",)),
    metrics=METRICS,
    default_metrics=DEFAULT_METRICS,
    best="accuracy",
    unit="example",
    options=TextClassificationOptions,
    label_smoothing=True,
    balance_window=16,
)


class TextClassification:
    """The task; see Task for what each method promises."""

    card = CARD

    def read(self, recipe: Recipe, tables: dict[str, Table]) -> Kit:
        """Tokenizer, classes, encoded examples. Raises: UserError for bad rows and labels that do not fit the model."""
        from finetune.data.prepare.cache import publish
        from finetune.models.config import load_config
        from finetune.models.tokenizer import load_tokenizer

        options = _options(recipe)
        tokenizer = load_tokenizer(recipe.model, lambda: training_texts(tables["train"]), publish=publish)
        config = load_config(recipe.model)
        trained = None
        if recipe.model.init == "pretrained" and not options.new_head:
            trained = trained_labels(config, HEAD)
        several = options.problem == "multi_label"
        classes = decide_classes(tables, options.labels, trained, several=several, where=recipe.model.source)
        kit = Kit(recipe, tokenizer, {}, tables, labels=classes.names)
        kit.metric_options = {"labels": classes.names, "num_labels": len(classes.names), "multi_label": several}
        limit = usable_length(options.max_length, tokenizer, config)
        for name, table in tables.items():
            kit.examples[name] = self._encode(kit, table, classes, limit)
        return kit

    def _encode(self, kit: Kit, table: Table, classes: Classes, limit: int) -> Examples:
        from finetune.data.prepare.encode import encode
        from finetune.models.tokenizer import fingerprint

        options = _options(kit.recipe)
        encoder = _Encoder(kit.processor, classes.lookup, limit, options.on_long, options.problem == "multi_label")
        asked = [CARD.name, 1, limit, options.on_long, options.problem, classes.names, classes.lookup.names]
        examples: Examples = encode(
            table,
            encoder,
            key=json.dumps([fingerprint(kit.processor), *asked]),
            on_bad_row=kit.recipe.data.on_bad_row,
            cost=lambda example: len(example["input_ids"]),
        )
        examples, dropped = drop_marked(examples)
        describe_lengths(kit, table.name, examples, limit, dropped)
        return examples

    def build(self, kit: Kit) -> nn.Module:
        """The encoder (or decoder) with its classification head; all ranks call it."""
        options = _options(kit.recipe)
        settings = {**named(kit.labels or []), "problem_type": f"{options.problem}_classification"}
        return build_sequence_model(kit, settings, new_head=options.new_head)

    def collate(self, kit: Kit, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"input_ids": [101, 7, 102], "label": 1}] -> input_ids [[101, 7, 102, 0, 0, 0, 0, 0]], labels [1]."""
        inputs, padding = pad_rows(examples, kit.processor.pad_token_id)
        several = _options(kit.recipe).problem == "multi_label"
        labels = label_tensor([example["label"] for example in examples], len(kit.labels or ()), several=several)
        return Batch(
            ids=tuple(int(example["id"]) for example in examples),
            inputs=inputs,
            targets={"labels": labels},
            padding=padding,
            positions=inputs["input_ids"].numel(),
        )

    def weight(self, batch: Batch) -> int:
        """Examples."""
        return len(batch.ids)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [B, C]."""
        return model(**batch.inputs)

    def loss_sum(self, kit: Kit, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over examples, with training.label_smoothing."""
        smoothing = kit.recipe.training.label_smoothing
        labels = batch.targets["labels"]
        return classification_loss_sum(outputs.logits, labels, label_smoothing=smoothing)

    def predict(self, kit: Kit, outputs: Any, batch: Batch) -> list[Prediction]:
        """Class, reference and scores; the text as the model saw it."""
        texts = as_seen(kit, batch)
        return class_predictions(outputs.logits, batch, kit.labels or [], [{"text": text} for text in texts])

    def sample(
        self, kit: Kit, model: nn.Module, examples: Sequence[dict[str, Any]], *, synced: bool
    ) -> list[dict[str, str]]:
        """Texts with the expected and the predicted class."""
        with eval_mode(model) as device:
            batch = self.collate(kit, examples).to(device)
            predictions = self.predict(kit, self.forward(model, batch), batch)
        return [
            {
                "id": str(prediction.id),
                "input": str(prediction.shown["text"]),
                "expected": name_of(prediction.values["reference"], kit.labels or []),
                "predicted": name_of(prediction.values["prediction"], kit.labels or []),
            }
            for prediction in predictions
        ]


class _Encoder:
    """A row -> {"input_ids", "token_type_ids" if the model takes them, "label"}; picklable."""

    def __init__(self, tokenizer: Any, labels: Any, limit: int, on_long: str, several: bool) -> None:
        self.tokenizer, self.labels, self.limit, self.on_long, self.several = tokenizer, labels, limit, on_long, several

    def __call__(self, row: Row) -> dict[str, Any]:
        label = self.labels.indices(row["label"]) if self.several else self.labels.index(row["label"])
        encoded = encode_texts(self.tokenizer, text_and_pair(row), self.limit, self.on_long)
        return {**(encoded or {"input_ids": []}), "label": label}


def _options(recipe: Recipe) -> TextClassificationOptions:
    assert isinstance(recipe.options, TextClassificationOptions)
    return recipe.options
