"""Token classification: a tag for every word, such as named entities (IOB) or parts of speech.

Shapes: B examples, L tokens (padded to the longest of the micro-batch), C tags; without padding, [1, T] in place of [B, L].
Unit of loss: one labelled token, which is one word unless options.label_on is all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForTokenClassification

from finetune.data.label_forms import TAGS
from finetune.data.prepare.cache import publish
from finetune.data.prepare.label_survey import class_names, column_name
from finetune.data.table import Examples, Row, Table
from finetune.models.config import load_config
from finetune.models.losses import IGNORE, cross_entropy_each, cross_entropy_sum
from finetune.models.padding_free import make_padding_free
from finetune.models.tokenizer import load_tokenizer
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch, RecordOptions, Score
from finetune.tasks.classes import choose_classes, describe_labels, label_settings, trained_labels
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.facts import Facts
from finetune.tasks.records import ASKED, Fields, refuse_options
from finetune.tasks.task import Encoded
from finetune.tasks.text.building import build_text_model
from finetune.tasks.text.dataset import text_dataset
from finetune.tasks.text.inputs import SHOWN, shown_text, shown_texts
from finetune.tasks.text.lengths import usable_length
from finetune.tasks.text.padding_free import collate_texts, is_concatenated, settle_packing, split_rows, split_values
from finetune.tasks.token_classification.card import CARD
from finetune.tasks.token_classification.data import OUTSIDE, encode_rows, input_words, tagged_text, training_texts
from finetune.tasks.token_classification.record import tag_fields, tag_record
from finetune.tasks.token_classification.tag_names import settle_metrics, tag_notes
from finetune.tasks.vision.drawing import Pictures

HEAD = "ForTokenClassification"


class TokenClassification:
    """The task; see Task for what each method promises."""

    card = CARD

    def prepare(self, plan: Plan, tables: Mapping[str, Table], facts: Facts) -> TaskArtifacts:
        """Tokenizer and tags. Raises: UserError for tags that do not fit the model."""
        recipe = plan.recipe
        options: Any = recipe.options
        tokenizer = load_tokenizer(recipe.model, lambda: training_texts(tables["train"]), publish=publish)
        config = load_config(recipe.model)
        trained = trained_labels(recipe, config, HEAD)
        in_data = class_names(tables, "tags", kind=TAGS)
        classes = choose_classes(in_data, options.labels, trained, where=recipe.model.source)
        facts.notes += tag_notes(classes.names, column_name(tables["train"], "tags"))
        settings = {
            **settle_packing(CARD, plan, usable_length(options.max_length, tokenizer, config), facts),
            "label_smoothing": recipe.training.label_smoothing,
            **settle_metrics(plan, classes.names, facts),
        }
        return TaskArtifacts(CARD.name, options, tokenizer, classes, settings)

    def encode(self, artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[Encoded]:
        """Words as token ids; see WordEncoder."""
        return encode_rows(artifacts, rows, with_targets=with_targets)

    def dataset(self, plan: Plan, artifacts: TaskArtifacts, table: Table, facts: Facts) -> Examples:
        """A split, encoded through the cache."""
        options, limit, classes = artifacts.options, artifacts.settings["max_length"], artifacts.classes
        assert classes is not None
        describe_labels(facts, table, classes, role="tags", kind=TAGS)
        key = [CARD.name, 1, limit, options.on_long, options.label_on, classes.names, classes.lookup.names]
        return text_dataset(self, plan, artifacts, table, facts, key=key, limit=f"{limit} tokens", shown=shown_text)

    def build(self, plan: Plan, artifacts: TaskArtifacts, facts: Facts) -> nn.Module:
        """The encoder with its tagging head; all ranks call it."""
        return build_text_model(
            AutoModelForTokenClassification,
            plan,
            artifacts,
            facts,
            settings=label_settings(artifacts.labels),
            new_head=artifacts.options.new_head,
            before_adapter=make_padding_free if is_concatenated(artifacts) else None,
        )

    def collate(self, artifacts: TaskArtifacts, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"input_ids": [101, 7, 8, 102], "labels": [-100, 3, -100, -100], "firsts": [1], "tags": [3]}] ->
        input_ids and labels [1, 4], padded with the padding token and -100, or concatenated; firsts and tags stay lists.
        """
        inputs, padding = collate_texts(artifacts, examples)
        shape = tuple(inputs["input_ids"].shape)
        targets: dict[str, Any] = {}
        if "labels" in examples[0]:
            labels = np.full(shape, IGNORE, np.int64)
            for row, example in zip(split_values(labels, inputs), examples, strict=True):
                row[:] = example["labels"]
            targets = {
                "labels": torch.from_numpy(labels),
                "units": int((labels != IGNORE).sum()),
                "tags": [_integers(example["tags"]) for example in examples],
            }
        return Batch(
            ids=tuple(int(example["id"]) for example in examples),
            inputs=inputs,
            targets=targets,
            meta={
                "firsts": [_integers(example["firsts"]) for example in examples],
                ASKED: [example.get(ASKED, {}) for example in examples],
                **shown_texts(examples),
            },
            padding=padding,
            positions=shape[0] * shape[1],
        )

    def weight(self, batch: Batch) -> int:
        """Labelled tokens."""
        return int(batch.targets["units"])

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [B, L, C]."""
        return model(**batch.inputs)

    def loss_sum(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over labelled tokens, with training.label_smoothing."""
        return cross_entropy_sum(
            outputs.logits.flatten(0, 1),
            batch.targets["labels"].flatten(),
            label_smoothing=artifacts.settings["label_smoothing"],
        )

    def decode(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Answer]:
        """A tag and its score for each word, those of its first token; for a word that has none O (or the first tag), and
        None as the score. Of examples that were not stored also what the row holds: the words, and their offsets.
        """
        names = artifacts.labels
        untagged = names.index(OUTSIDE) if OUTSIDE in names else 0
        logits = outputs.logits.detach().float()
        best = torch.softmax(logits, dim=-1).max(dim=-1).values.cpu()
        chosen = split_values(logits.argmax(dim=-1).cpu(), batch.inputs)
        scores = split_values(best, batch.inputs)
        rows = zip(
            batch.ids, chosen, scores, batch.meta["firsts"], _words(artifacts, batch), batch.meta[ASKED], strict=True
        )
        answers = []
        for id, token_tags, token_scores, firsts, words, asked in rows:
            tags = [int(token_tags[first]) if first >= 0 else untagged for first in firsts]
            tag_scores = [float(token_scores[first]) if first >= 0 else None for first in firsts]
            values = {"tags": tags, "tag_scores": tag_scores, **asked}
            answers.append(Answer(id, values, {"predicted": tagged_text(words, tags, names)}))
        return answers

    def record_fields(self, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
        """Words with their tags, and entities where the tags name any; see tag_record."""
        refuse_options(options, CARD.name, takes=())
        return tag_fields(artifacts.labels)

    def record(self, artifacts: TaskArtifacts, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        """See record_fields. Raises: BadRow for an answer with numbers that are not finite."""
        return tag_record(answer.values, artifacts.labels)

    def score(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Score]:
        """The expected tags, and the loss of the labelled tokens."""
        labels = batch.targets["labels"]
        each = cross_entropy_each(outputs.logits.detach().float().flatten(0, 1), labels.flatten())
        losses = split_values(each.view(labels.shape).double().cpu(), batch.inputs)
        labelled = split_values((labels != IGNORE).cpu(), batch.inputs)
        rows = zip(batch.ids, losses, labelled, batch.targets["tags"], _words(artifacts, batch), strict=True)
        scores = []
        for id, loss, counted, tags, words in rows:
            text = tagged_text(words, tags, artifacts.labels)
            scores.append(Score(id, float(loss.sum()), int(counted.sum()), {"reference_tags": tags}, {"text": text}))
        return scores

    def metric_options(self, artifacts: TaskArtifacts) -> dict[str, Any]:
        """Names of the tags."""
        return {"labels": artifacts.labels}

    def sample(
        self,
        artifacts: TaskArtifacts,
        model: nn.Module,
        examples: Sequence[dict[str, Any]],
        *,
        synced: bool,
        pictures: Pictures | None = None,
    ) -> list[dict[str, str]]:
        """Texts with their expected and their predicted tags."""
        with eval_mode(model) as device:
            batch = self.collate(artifacts, examples).to(device)
            answers = self.decode(artifacts, self.forward(model, batch), batch)
        names, words = artifacts.labels, _words(artifacts, batch)
        return [
            {
                "id": str(answer.id),
                "input": " ".join(words[row]),
                "expected": tagged_text(words[row], batch.targets["tags"][row], names),
                "predicted": tagged_text(words[row], answer.values["tags"], names),
            }
            for row, answer in enumerate(answers)
        ]


def _words(artifacts: TaskArtifacts, batch: Batch) -> list[list[str]]:
    """The words of each example: as they are written where it has them with it, otherwise as the model saw them."""
    rows = list(zip(split_rows(batch.inputs), batch.meta["firsts"], strict=True))
    written = batch.meta.get(SHOWN) or [[]] * len(rows)
    return [
        list(words) if len(words) == len(firsts) else input_words(artifacts, ids.tolist(), firsts)
        for (ids, firsts), words in zip(rows, written, strict=True)
    ]


def _integers(values: Any) -> list[int]:
    return [int(value) for value in values]


TASK = TokenClassification()
