"""Token classification: a tag for every word, such as named entities (IOB) or parts of speech.

Shapes: B examples, L tokens (padded to the longest of the micro-batch), C tags.
Unit of loss: one labelled token, which is one word unless options.label_on is all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from finetune.data.labels import class_names
from finetune.data.table import Examples, Table
from finetune.recipe.card import TaskCard
from finetune.recipe.recipe import Recipe
from finetune.recipe.section import Section
from finetune.tasks.classes import choose_classes, named, trained_labels
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.task import Batch, Kit, Prediction
from finetune.tasks.text.lengths import describe_lengths, pad_rows, usable_length
from finetune.tasks.text.selection import drop_marked
from finetune.tasks.text.words import WordEncoder

if TYPE_CHECKING:
    import torch
    from torch import nn

HEAD = "ForTokenClassification"
METRICS = ("entity_f1", "entity_precision", "entity_recall", "word_accuracy", "per_entity")
OUTSIDE = "O"
SHOWN_WORDS = 60


class TokenClassificationOptions(Section):
    max_length: int = Field(
        default=256, ge=4, description="Tokens of an example at most, the model's own limit besides."
    )
    on_long: Literal["truncate", "drop", "error"] = Field(
        default="truncate",
        description="A longer one: cut its end (words cut off count as untagged in the metrics), leave the example out "
        "(counted), or a bad row.",
    )
    label_on: Literal["first", "all"] = Field(
        default="first",
        description="Pieces of a word that learn its tag: the first, or all (B- becomes I- on the later ones). "
        "Predictions are read off the first.",
    )
    labels: list[str] = Field(
        default_factory=list,
        description="Names of the tags in order, where the data holds 0, 1, ...; or all there may be. Default: as found.",
    )
    new_head: bool = Field(default=False, description="Train a new head, even if the checkpoint has one.")


CARD = TaskCard(
    name="token_classification",
    summary="Tag every word of a text: named entities, parts of speech.",
    columns={
        "tokens": "The words: a list.",
        "tags": "A tag for each word: a list of names or numbers.",
    },
    required=(("tokens",), ("tags",)),
    metrics=METRICS,
    default_metrics=METRICS,
    best="entity_f1",
    unit="word",
    options=TokenClassificationOptions,
    label_smoothing=True,
)


class TokenClassification:
    """The task; see Task for what each method promises."""

    card = CARD

    def read(self, recipe: Recipe, tables: dict[str, Table]) -> Kit:
        """Tokenizer, tags, encoded examples. Raises: UserError for bad rows and tags that do not fit the model."""
        from finetune.data.prepare.cache import publish
        from finetune.models.config import load_config
        from finetune.models.tokenizer import load_tokenizer

        options = _options(recipe)
        tokenizer = load_tokenizer(recipe.model, lambda: _texts(tables["train"]), publish=publish)
        config = load_config(recipe.model)
        trained = None
        if recipe.model.init == "pretrained" and not options.new_head:
            trained = trained_labels(config, HEAD)
        found = class_names(tables, "tags", several=True)
        classes = choose_classes(found, options.labels, trained, where=recipe.model.source)
        kit = Kit(recipe, tokenizer, {}, tables, labels=classes.names, metric_options={"labels": classes.names})
        limit = usable_length(options.max_length, tokenizer, config)
        encoder = WordEncoder(
            tokenizer, classes.lookup, classes.names, limit=limit, on_long=options.on_long, label_on=options.label_on
        )
        for name, table in tables.items():
            kit.examples[name] = self._encode(kit, table, encoder, classes.lookup.names)
        return kit

    def _encode(self, kit: Kit, table: Table, encoder: WordEncoder, written: Sequence[str]) -> Examples:
        from finetune.data.prepare.encode import encode
        from finetune.models.tokenizer import fingerprint

        asked = [CARD.name, 1, encoder.limit, encoder.on_long, encoder.label_on, kit.labels, list(written)]
        examples: Examples = encode(
            table,
            encoder,
            key=json.dumps([fingerprint(kit.processor), *asked]),
            on_bad_row=kit.recipe.data.on_bad_row,
            cost=lambda example: len(example["input_ids"]),
        )
        examples, dropped = drop_marked(examples)
        describe_lengths(kit, table.name, examples, encoder.limit, dropped)
        return examples

    def build(self, kit: Kit) -> nn.Module:
        """The encoder with its tagging head; all ranks call it."""
        from transformers import AutoModelForTokenClassification

        from finetune.models.adapters import add_adapter
        from finetune.models.head import head_names
        from finetune.models.load import choose_dtype, load_config, load_model
        from finetune.models.tokenizer import fresh_settings, new_token_ids, set_padding

        recipe, tokenizer = kit.recipe, kit.processor
        model, loading = load_model(
            AutoModelForTokenClassification,
            recipe.model,
            load_config(recipe.model, **named(kit.labels or []), **fresh_settings(recipe.model, tokenizer)),
            dtype=choose_dtype(recipe),
            seed=recipe.seed,
            new_head=_options(recipe).new_head,
            vocabulary=len(tokenizer),
        )
        kit.facts.update(loading.facts())
        set_padding(model, tokenizer)
        if recipe.adapter is not None:
            model = add_adapter(
                model,
                recipe.adapter,
                "TOKEN_CLS",
                head_names(model),
                seed=recipe.seed,
                new_tokens=new_token_ids(recipe.model, tokenizer, loading.grown),
            )
        return model

    def collate(self, kit: Kit, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"input_ids": [101, 7, 8, 102], "labels": [-100, 3, -100, -100], "firsts": [1], "tags": [3]}] ->
        input_ids and labels [1, 8], padded with the padding token and -100; targets keep firsts and tags as lists.
        """
        import numpy as np
        import torch

        from finetune.models.losses import IGNORE

        inputs, padding = pad_rows(examples, kit.processor.pad_token_id)
        labels = np.full(tuple(inputs["input_ids"].shape), IGNORE, np.int64)
        for row, example in zip(labels, examples, strict=True):
            row[: len(example["labels"])] = example["labels"]
        targets = {
            "labels": torch.from_numpy(labels),
            "units": int((labels != IGNORE).sum()),
            "firsts": [example["firsts"].tolist() for example in examples],
            "tags": [example["tags"].tolist() for example in examples],
        }
        ids = tuple(int(example["id"]) for example in examples)
        return Batch(ids, inputs, targets, padding=padding, positions=labels.size)

    def weight(self, batch: Batch) -> int:
        """Labelled tokens."""
        return int(batch.targets["units"])

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [B, L, C]."""
        return model(**batch.inputs)

    def loss_sum(self, kit: Kit, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over labelled tokens, with training.label_smoothing."""
        from finetune.models.losses import cross_entropy_sum

        return cross_entropy_sum(
            outputs.logits.flatten(0, 1),
            batch.targets["labels"].flatten(),
            label_smoothing=kit.recipe.training.label_smoothing,
        )

    def predict(self, kit: Kit, outputs: Any, batch: Batch) -> list[Prediction]:
        """A tag for each word, that of its first token; a word without one gets O, or the first tag where there is no O."""
        from finetune.models.losses import IGNORE, cross_entropy_each

        names, labels = kit.labels or [], batch.targets["labels"]
        logits = outputs.logits.detach().float()
        losses = cross_entropy_each(logits.flatten(0, 1), labels.flatten()).view(labels.shape).double().sum(dim=1)
        counts = (labels != IGNORE).sum(dim=1).tolist()
        untagged = names.index(OUTSIDE) if OUTSIDE in names else 0
        found = []
        chosen = logits.argmax(dim=-1).tolist()
        for row, id in enumerate(batch.ids):
            firsts, wanted = batch.targets["firsts"][row], batch.targets["tags"][row]
            tags = [chosen[row][first] if first >= 0 else untagged for first in firsts]
            words = _words(kit, batch, row)
            shown = {"text": _marked(words, wanted, names), "predicted": _marked(words, tags, names)}
            weight = counts[row]
            values = {"tags": tags, "reference_tags": wanted}
            found.append(Prediction(id, values, losses[row].item(), weight, shown))
        return found

    def sample(
        self, kit: Kit, model: nn.Module, examples: Sequence[dict[str, Any]], *, synced: bool
    ) -> list[dict[str, str]]:
        """Texts with their expected and their predicted entities."""
        with eval_mode(model) as device:
            batch = self.collate(kit, examples).to(device)
            predictions = self.predict(kit, self.forward(model, batch), batch)
        names = kit.labels or []
        return [
            {
                "id": str(prediction.id),
                "input": " ".join(_words(kit, batch, row)),
                "expected": " ".join(names[tag] for tag in prediction.values["reference_tags"]),
                "predicted": " ".join(names[tag] for tag in prediction.values["tags"]),
            }
            for row, prediction in enumerate(predictions)
        ]


def _words(kit: Kit, batch: Batch, row: int) -> list[str]:
    """The words as the model saw them: the text from one first token to the next."""
    ids = batch.inputs["input_ids"][row].tolist()
    length = int(batch.inputs["attention_mask"][row].sum())
    firsts = batch.targets["firsts"][row]
    begins = [first for first in firsts if first >= 0]
    ends = dict(zip(begins, [*begins[1:], length], strict=True))
    special = set(kit.processor.all_special_ids)
    return [
        kit.processor.decode([token for token in ids[first : ends[first]] if token not in special]).strip()
        if first >= 0
        else "..."
        for first in firsts
    ]


def _marked(words: Sequence[str], tags: Sequence[int], names: Sequence[str]) -> str:
    """Words with their tags behind them, O unsaid: "stayed on Redondo/B-location Beach/I-location"."""
    marked = [
        word if names[tag] == OUTSIDE else f"{word}/{names[tag]}"
        for word, tag in zip(words[:SHOWN_WORDS], tags, strict=False)
    ]
    return " ".join(marked) + (" ..." if len(words) > SHOWN_WORDS else "")


def _texts(table: Table) -> Iterator[str]:
    """Training texts for a tokenizer that is trained on them."""
    for row in table:
        yield " ".join(map(str, row["tokens"]))


def _options(recipe: Recipe) -> TokenClassificationOptions:
    assert isinstance(recipe.options, TokenClassificationOptions)
    return recipe.options
