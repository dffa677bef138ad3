"""Image classification: CNNs (ResNet, ConvNeXt) and vision transformers, through transformers' own models.

Shapes: B images, K color channels, H x W pixels (one size for all), C classes. Unit of loss: one image.
Pixels are decoded when an example is asked for; a pass before the first step finds the images that cannot be decoded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageClassification

from finetune.data.prepare.encode import EncodedExamples, encode
from finetune.data.table import Examples, Row, Table
from finetune.models.batchnorm import freeze_batchnorm
from finetune.models.config import load_config
from finetune.models.continuing import adapt
from finetune.models.head import head_names
from finetune.models.load import load_model
from finetune.models.processor import load_processor, model_size, num_channels, output_size
from finetune.planning.plan import Plan
from finetune.recipe.recipe import Recipe
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch, RecordOptions, Score
from finetune.tasks.class_outputs import (
    class_answers,
    class_scores,
    classification_loss_sum,
    label_tensor,
    name_of,
    weighted_loss_sum,
)
from finetune.tasks.class_weights import class_counts, weigh_classes
from finetune.tasks.classes import decide_classes, describe_labels, label_settings, trained_labels
from finetune.tasks.facts import Facts
from finetune.tasks.image_classification.card import CARD
from finetune.tasks.image_classification.data import ImageWithLabel, check_rows, encode_rows, image_transform
from finetune.tasks.records import Fields, class_fields, class_record, refuse_options
from finetune.tasks.scored_answers import scored_answers
from finetune.tasks.task import Encoded
from finetune.tasks.vision.drawing import Pictures, draw_example
from finetune.tasks.vision.levels import pixel_values, stack_pixels
from finetune.tasks.vision.transforms import ImageExamples, one_image
from finetune.units import format_number

HEAD = "ForImageClassification"


class ImageClassification:
    """The task; see Task for what each method promises."""

    card = CARD

    def prepare(self, plan: Plan, tables: Mapping[str, Table], facts: Facts) -> TaskArtifacts:
        """Processor, classes and their weights. Raises: UserError for labels that do not fit the model."""
        recipe = plan.recipe
        options: Any = recipe.options
        config = load_config(recipe.model, **_size_settings(recipe))
        processor = load_processor(
            recipe.model,
            config,
            image_size=options.image_size,
            mean=options.mean,
            std=options.std,
            interpolation=options.interpolation,
        )
        trained = trained_labels(recipe, config, HEAD)
        classes = decide_classes(tables, options.labels, trained, where=recipe.model.source, facts=facts)
        size = output_size(processor, config)
        assert size is not None, "load_processor promises one size"
        settings: dict[str, Any] = {
            "image_size": list(size),
            "channels": num_channels(config),
            "label_smoothing": recipe.training.label_smoothing,
            "class_weights": None,
        }
        artifacts = TaskArtifacts(CARD.name, options, processor, classes, settings)
        if options.class_weights != "none":
            counts = class_counts((e["label"] for e in self._check(plan, artifacts, tables["train"])), classes.names)
            settings["class_weights"] = weigh_classes(options.class_weights, counts)
        return replace(artifacts, settings=settings)

    def encode(self, artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[Encoded]:
        """Images as pixels, without augmentation; see encode_rows."""
        return encode_rows(artifacts, rows, with_targets=with_targets)

    def check_target(self, artifacts: TaskArtifacts, row: Row) -> None:
        """Raises: BadRow for a label that is not among the classes."""
        assert artifacts.classes is not None
        artifacts.classes.lookup.index(row.get("label"))

    def dataset(self, plan: Plan, artifacts: TaskArtifacts, table: Table, facts: Facts) -> Examples:
        """A split whose images are decoded when they are fetched; every image and label is checked once, in any run."""
        checked, options, training = self._check(plan, artifacts, table), artifacts.options, table.name == "train"
        assert artifacts.classes is not None
        describe_labels(facts, table, artifacts.classes)
        skipped = f", {format_number(checked.skipped_count, 'bad row')} skipped" if checked.skipped_count else ""
        height, width = artifacts.settings["image_size"]
        facts[table.name] = f"{len(checked):,} images of {width} x {height}{skipped}"
        counts = class_counts((example["label"] for example in checked), artifacts.labels)
        facts[f"{table.name} classes"] = counts
        facts.notes.extend(checked.report())
        ids = checked.ids.tolist()
        transform = image_transform(artifacts, augment=options.augment if training else "none", seed=plan.recipe.seed)
        mixup, cutmix = (options.mixup, options.cutmix) if training else (0.0, 0.0)
        decode = ImageWithLabel(transform, artifacts.classes.lookup, table, ids, mixup, cutmix)
        return ImageExamples(table, ids, decode, [height * width] * len(checked))

    def _check(self, plan: Plan, artifacts: TaskArtifacts, table: Table) -> EncodedExamples:
        """{"label"} of each usable row. Found in the cache after the first time."""
        assert artifacts.classes is not None
        labels, value_range = artifacts.classes.lookup, artifacts.options.value_range
        return encode(
            table,
            partial(check_rows, labels, value_range),
            key=json.dumps([CARD.name, 2, labels.names, value_range]),
            on_bad_row=plan.recipe.data.on_bad_row,
            cost=one_image,
        )

    def build(self, plan: Plan, artifacts: TaskArtifacts, facts: Facts) -> nn.Module:
        """The network with its head; BatchNorm frozen where the plan says so. All ranks call it."""
        recipe = plan.recipe
        model, loading = load_model(
            AutoModelForImageClassification,
            recipe.model,
            load_config(recipe.model, **_size_settings(recipe), **label_settings(artifacts.labels)),
            dtype=plan.weights_dtype,
            seed=recipe.seed,
            new_head=artifacts.options.new_head,
        )
        facts.update(loading.facts())
        if plan.training.batch_norm == "frozen":
            freeze_batchnorm(model)
        if recipe.adapter is not None:
            model = adapt(model, recipe, None, head_names(model))
        return model

    def collate(self, artifacts: TaskArtifacts, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"pixel_values": [K, H, W], "label": 3}, ...] -> those of `stack_pixels`, labels [B]."""
        inputs = stack_pixels([example["pixel_values"] for example in examples])
        targets: dict[str, Any] = {}
        if "label" in examples[0]:
            labels = [example["label"] for example in examples]
            targets["labels"] = label_tensor(labels, len(artifacts.labels), several=False)
        if "share" in examples[0]:
            targets["partners"] = torch.tensor([int(example["partner"]) for example in examples])
            targets["shares"] = torch.tensor([float(example["share"]) for example in examples])
        if (
            targets and artifacts.settings["class_weights"] is not None
        ):  # with the batch: a copy of its own makes the host wait
            targets["class_weights"] = torch.tensor(artifacts.settings["class_weights"])
        return Batch(
            ids=tuple(int(example["id"]) for example in examples),
            inputs=inputs,
            targets=targets,
            meta={"places": [str(example["place"]) for example in examples]},
            positions=len(examples) * math.prod(inputs["pixel_values"].shape[2:]),
        )

    def weight(self, batch: Batch) -> int:
        """Images."""
        return len(batch.ids)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [B, C]; pixels in the dtype of the weights."""
        return model(**pixel_values(batch.inputs, next(model.parameters()).dtype))

    def loss_sum(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over images, with training.label_smoothing, class weights, and labels shared by mixed images.

        Class weights are for training alone: `score`, and with it validation, reports the plain loss.
        """
        smoothing, targets = artifacts.settings["label_smoothing"], batch.targets
        if "class_weights" not in targets and "shares" not in targets:
            return classification_loss_sum(outputs.logits, targets["labels"], label_smoothing=smoothing)
        return weighted_loss_sum(
            outputs.logits,
            targets["labels"],
            partners=targets.get("partners"),
            shares=targets.get("shares"),
            class_weights=targets.get("class_weights"),
            label_smoothing=smoothing,
        )

    def decode(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Answer]:
        """Class and scores; where the image lies in the data."""
        shown = [{"image": place} for place in batch.meta["places"]]
        return class_answers(outputs.logits, batch, artifacts.labels, shown, several=False)

    def record_fields(self, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
        """The class and its score; see class_record."""
        refuse_options(options, CARD.name, takes=("top_k",))
        return class_fields(options, several=False)

    def record(self, artifacts: TaskArtifacts, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        """See record_fields. Raises: BadRow for an answer with numbers that are not finite."""
        return class_record(answer.values, artifacts.labels, options, several=False)

    def score(self, artifacts: TaskArtifacts, outputs: Any, batch: Batch) -> list[Score]:
        """Label and loss."""
        return class_scores(outputs.logits, batch, artifacts.labels)

    def metric_options(self, artifacts: TaskArtifacts) -> dict[str, Any]:
        """Names and number of the classes."""
        return {"labels": artifacts.labels, "num_labels": len(artifacts.labels), "multi_label": False}

    def sample(
        self,
        artifacts: TaskArtifacts,
        model: nn.Module,
        examples: Sequence[dict[str, Any]],
        *,
        synced: bool,
        pictures: Pictures | None = None,
    ) -> list[dict[str, str]]:
        """Places of images with the expected and the predicted class; the images in `pictures` where it is given."""
        scored = scored_answers(self, artifacts, model, examples)
        rows = []
        for (answer, score), example in zip(scored, examples, strict=True):
            row = {
                "id": str(answer.id),
                "input": str(answer.shown["image"]),
                "expected": name_of(score.reference["reference"], artifacts.labels),
                "predicted": name_of(answer.values["prediction"], artifacts.labels),
            }
            if pictures is not None:
                row |= pictures.save(f"{answer.id}.png", partial(draw_example, artifacts.processor, example))
            rows.append(row)
        return rows


def _size_settings(recipe: Recipe) -> dict[str, Any]:
    """A model with random weights and learned positions is made for the recipe's image_size."""
    size = getattr(recipe.options, "image_size", None)
    if size is None or recipe.model.init != "config" or "image_size" in recipe.model.config:
        return {}
    return {"image_size": size} if model_size(load_config(recipe.model)) is not None else {}


TASK = ImageClassification()
