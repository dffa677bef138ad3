"""Text classification: one text or a pair of them, one label each or several.

Shapes: B examples, C classes; tokens [B, L] (padded to the longest), or [1, T] without padding.
Unit of loss: one example. With several labels an example's loss is the mean over the C classes of the binary
cross-entropy, so that the learning rate need not follow C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from finetune.tasks.class_outputs import class_answers, class_scores, classification_loss_sum, label_tensor, name_of
from finetune.tasks.classes import decide_classes, decide_label_sets, describe_labels, label_settings, trained_labels
from finetune.tasks.facts import Facts
from finetune.tasks.records import Fields, class_fields, class_record, refuse_options
from finetune.tasks.scored_answers import scored_answers
from finetune.tasks.task import Encoded
from finetune.tasks.text.building import SEQUENCE_HEAD, build_sequence_model
from finetune.tasks.text.dataset import text_dataset
from finetune.tasks.text.inputs import input_texts, shown_text, shown_texts, training_texts
from finetune.tasks.text.lengths import usable_length
from finetune.tasks.text.padding_free import collate_texts, settle_packing
from finetune.tasks.text_classification.card import CARD
from finetune.tasks.text_classification.data import encode_rows
from finetune.tasks.vision.drawing import Pictures


class TextClassification:
    """The task; see Task for what each method promises."""

    card = CARD

    def prepare(self, plan: Plan, tables: Mapping[str, Table], facts: Facts) -> TaskArtifacts:
        """Tokenizer and classes. Raises: UserError for labels that do not fit the model."""
        recipe = plan.recipe
        options: Any = recipe.options
        tokenizer = load_tokenizer(recipe.model, lambda: training_texts(tables["train"]), publish=publish)
        config = load_config(recipe.model)
        trained = trained_labels(recipe, config, SEQUENCE_HEAD)
        where = recipe.model.source
        if options.problem == "multi_label":
            separator = options.label_separator
            classes = decide_label_sets(tables, options.labels, trained, separator=separator, where=where, facts=facts)
        else:
            classes = decide_classes(tables, options.labels, trained, where=where, facts=facts)
        settings = {
            **settle_packing(CARD, plan, usable_length(options.max_length, tokenizer, config), facts),
            "label_smoothing": recipe.training.label_smoothing,
        }
        return TaskArtifacts(CARD.name, options, tokenizer, classes, settings)

    def encode(self, artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[Encoded]:
        """Texts as token ids; see encode_rows."""
        return encode_rows(artifacts, rows, with_targets=with_targets)

    def dataset(self, plan: Plan, artifacts: TaskArtifacts, table: Table, facts: Facts) -> Examples:
        """A split, encoded through the cache."""
        options, limit, classes = artifacts.options, artifacts.settings["max_length"], artifacts.classes
        assert classes is not None
        describe_labels(facts, table, classes, kind=classes.lookup.form if _several(artifacts) else None)
        key = [CARD.name, 2, limit, options.on_long, options.problem, classes.to_dict()]
        return text_dataset(self, plan, artifacts, table, facts, key=key, limit=f"{limit} tokens", shown=shown_text)

    def build(self, plan: Plan, artifacts: TaskArtifacts, facts: Facts) -> nn.Module:
        """The encoder (or decoder) with its classification head; all ranks call it."""
        options = artifacts.options
        settings = {**label_settings(artifacts.labels), "problem_type": f"{options.problem}_classification"}
        return build_sequence_model(plan, artifacts, facts, settings, new_head=options.new_head)

    def collate(self, artifacts: TaskArtifacts, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"input_ids": [101, 7, 102], "label": 1}] -> input_ids [[101, 7, 102]], labels [1]. See collate_texts."""
        inputs, padding = collate_texts(artifacts, examples)
        targets = {}
        if "label" in examples[0]:
            labels = [example["label"] for example in examples]
            targets["labels"] = label_tensor(labels, len(artifacts.labels), several=_several(artifacts))
        return Batch(
            ids=tuple(int(example["id"]) for example in examples),
            inputs=inputs,
            targets=targets,
            meta={**shown_texts(examples)},
            padding=padding,
            positions=inputs["input_ids"].numel(),
        )

    def weight(self, batch: Batch) -> int:
        """Examples."""
        return len(batch.ids)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [B, C]."""
        return model(**batch.inputs)

    def loss_sum(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over examples, with training.label_smoothing."""
        smoothing = artifacts.settings["label_smoothing"]
        return classification_loss_sum(outputs.logits, batch.targets["labels"], label_smoothing=smoothing)

    def decode(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Answer]:
        """Class and scores; the text."""
        shown = [{"text": text} for text in input_texts(artifacts, batch)]
        return class_answers(outputs.logits, batch, artifacts.labels, shown, several=_several(artifacts))

    def record_fields(self, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
        """The class and its score; see class_record."""
        several = _several(artifacts)
        takes, because = ("top_k",), ", of one label per text"
        if several:
            takes, because = ("threshold",), ", of any number of labels per text"
        refuse_options(options, CARD.name, takes=takes, because=because)
        return class_fields(options, several=several)

    def record(self, artifacts: TaskArtifacts, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        """See record_fields. Raises: BadRow for an answer with numbers that are not finite."""
        return class_record(answer.values, artifacts.labels, options, several=_several(artifacts))

    def score(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Score]:
        """Label and loss."""
        return class_scores(outputs.logits, batch, artifacts.labels)

    def metric_options(self, artifacts: TaskArtifacts) -> dict[str, Any]:
        """Names and number of the classes."""
        labels = artifacts.labels
        return {"labels": labels, "num_labels": len(labels), "multi_label": _several(artifacts)}

    def sample(
        self,
        artifacts: TaskArtifacts,
        model: nn.Module,
        examples: Sequence[dict[str, Any]],
        *,
        synced: bool,
        pictures: Pictures | None = None,
    ) -> list[dict[str, str]]:
        """Texts with the expected and the predicted class."""
        return [
            {
                "id": str(answer.id),
                "input": str(answer.shown["text"]),
                "expected": name_of(score.reference["reference"], artifacts.labels),
                "predicted": name_of(answer.values["prediction"], artifacts.labels),
            }
            for answer, score in scored_answers(self, artifacts, model, examples)
        ]


def _several(artifacts: TaskArtifacts) -> bool:
    return artifacts.options.problem == "multi_label"


TASK = TextClassification()
