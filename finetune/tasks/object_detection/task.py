"""Object detection: boxes and classes of what an image shows, through transformers' detectors of the DETR family.

Shapes: B images, Q queries, C classes, H x W pixels (one size for all; boxes are shares of it). Unit of loss: one box;
an image without boxes counts as one. In evaluation mode the loss is the same however a batch is split. In training mode
denoising queries (D-FINE, RT-DETR; config num_denoising) draw noise on each rank, in groups as many as the fullest image
of a micro-batch allows: there, as with dropout, sums over other splits agree on average only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForObjectDetection

from finetune.data.bad_rows import BadRow
from finetune.data.images import read_header
from finetune.data.prepare.encode import encode
from finetune.data.table import Examples, Row, Table
from finetune.models.batchnorm import freeze_batchnorm
from finetune.models.config import load_config
from finetune.models.continuing import adapt
from finetune.models.detection import (
    DetectionOutputs,
    box_units,
    cast_inputs,
    class_modules,
    decode_boxes,
    defer_loss,
    detect,
    detection_loss_sum,
    detection_losses,
    family_of,
    lower_prior,
)
from finetune.models.load import load_model
from finetune.models.processor import load_processor, output_size
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Batch, RecordOptions, Score
from finetune.tasks.classes import choose_classes, label_settings, trained_labels
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.facts import Facts
from finetune.tasks.object_detection.box_format import check_box_format
from finetune.tasks.object_detection.card import CARD
from finetune.tasks.object_detection.data import (
    ImageWithBoxes,
    Reading,
    check_rows,
    class_names_of,
    detection_transform,
    encode_rows,
    usable_objects,
)
from finetune.tasks.object_detection.descriptions import (
    CLEAR,
    count_classes,
    count_clear,
    describe_split,
    draw_answer,
)
from finetune.tasks.records import Fields, figure, refuse_options
from finetune.tasks.task import Encoded
from finetune.tasks.vision.boxes import xywh
from finetune.tasks.vision.drawing import Pictures
from finetune.tasks.vision.levels import pixel_values, stack_pixels
from finetune.tasks.vision.transforms import ImageExamples, one_image

HEAD = "ForObjectDetection"
PROCESSORS = {"yolos": "YolosImageProcessorPil", "detr": "DetrImageProcessorPil"}
PROCESSOR = "RTDetrImageProcessorPil"
# DeepSpeed's own linear function for ZeRO-3 drops a weight between forward and backward pass and looks it up again; D-FINE
# also computes linear functions of tensors that are no weights (the bins of its boxes' distributions).
NEEDS_PLAIN_LINEAR = {"d_fine"}


class ObjectDetection:
    """The task; see Task for what each method promises."""

    card = CARD

    def zero_settings(self, config: Any) -> dict[str, Any]:
        """torch's own linear function where a model cannot do with DeepSpeed's."""
        return {"memory_efficient_linear": False} if config.model_type in NEEDS_PLAIN_LINEAR else {}

    def prepare(self, plan: Plan, tables: Mapping[str, Table], facts: Facts) -> TaskArtifacts:
        """Processor and classes. Raises: UserError for classes that do not fit the model."""
        recipe = plan.recipe
        options: Any = recipe.options
        config: Any = load_config(recipe.model, **_config_settings(plan))
        processor = load_processor(
            recipe.model,
            config,
            image_size=options.image_size or (None if recipe.model.init == "pretrained" else 640),
            mean=options.mean,
            std=options.std,
            kind=PROCESSORS.get(config.model_type, PROCESSOR),
        )
        if options.mean or options.std:
            processor.do_normalize = True
        trained = trained_labels(recipe, config, HEAD)
        classes = choose_classes(class_names_of(tables["train"]), options.labels, trained, where=recipe.model.source)
        size = output_size(processor, config)
        assert size is not None, "load_processor promises one size"
        return TaskArtifacts(CARD.name, options, processor, classes, {"image_size": list(size)})

    def encode(self, artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[Encoded]:
        """Images as pixels, without augmentation, and with targets their boxes; see encode_rows."""
        return encode_rows(artifacts, rows, with_targets=with_targets)

    def check_target(self, artifacts: TaskArtifacts, row: Row) -> None:
        """Raises: BadRow for objects or boxes that cannot be used. Reads the header of the image."""
        reading = Reading.of(artifacts)
        try:
            header = read_header(row.get("image"), reading.value_range)
        except BadRow:
            return  # reported when it is decoded: the objects are not to blame
        usable_objects(row, header, reading, skip=False)

    def dataset(self, plan: Plan, artifacts: TaskArtifacts, table: Table, facts: Facts) -> Examples:
        """A split whose images are decoded when they are fetched; every image and box is checked once, in any run."""
        policy, reading = plan.recipe.data.on_bad_row, Reading.of(artifacts)
        if artifacts.options.box_format is None and (note := check_box_format(table)):
            facts.notes.append(note)
        checked = encode(
            table,
            partial(check_rows, reading, skip=policy == "skip"),
            key=json.dumps([CARD.name, 2, reading.key(), policy]),
            on_bad_row=policy,
            cost=one_image,
        )
        height, width = artifacts.settings["image_size"]
        describe_split(facts, table, checked, artifacts.labels, f"{width} x {height}")
        facts.notes.extend(checked.report())
        augment = artifacts.options.augment if table.name == "train" else "none"
        transform = detection_transform(artifacts, augment=augment, seed=plan.recipe.seed)
        indices = {int(row_id): index for index, row_id in enumerate(checked.ids)}
        decode = ImageWithBoxes(transform, checked, indices, table)
        return ImageExamples(table, checked.ids.tolist(), decode, [height * width] * len(checked))

    def build(self, plan: Plan, artifacts: TaskArtifacts, facts: Facts) -> nn.Module:
        """The detector, its loss deferred to `loss_sum`; BatchNorm frozen where the plan says so. All ranks call it."""
        recipe = plan.recipe
        model, loading = load_model(
            AutoModelForObjectDetection,
            recipe.model,
            load_config(recipe.model, **_config_settings(plan), **label_settings(artifacts.labels)),
            dtype=plan.weights_dtype,
            seed=recipe.seed,
            new_head=artifacts.options.new_head,
            heads=class_modules,
        )
        facts.update(loading.facts())
        if plan.training.batch_norm == "frozen":
            freeze_batchnorm(model)
        if loading.new_head and not family_of(model).softmax:
            lower_prior(model, loading.new_head)
        defer_loss(model)
        cast_inputs(model)
        if recipe.adapter is not None:
            model = adapt(model, recipe, None, class_modules(model))
        return model

    def collate(self, artifacts: TaskArtifacts, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"pixel_values": [3, H, W], "boxes": [n, 4], ...}] -> those of `stack_pixels`, and labels: B dicts of targets."""
        inputs: dict[str, Any] = stack_pixels([example["pixel_values"] for example in examples])
        targets: dict[str, Any] = {}
        if "objects" in examples[0]:
            inputs["labels"] = [
                {"class_labels": torch.from_numpy(example["class_labels"]), "boxes": torch.from_numpy(example["boxes"])}
                for example in examples
            ]
            targets["objects"] = [example["objects"] for example in examples]
        return Batch(
            ids=tuple(int(example["id"]) for example in examples),
            inputs=inputs,
            targets=targets,
            meta={
                "sizes": [[int(edge) for edge in example["size"]] for example in examples],
                "places": [str(example["place"]) for example in examples],
            },
            positions=len(examples) * math.prod(inputs["pixel_values"].shape[2:]),
        )

    def weight(self, batch: Batch) -> int:
        """Boxes; an image without any counts as one."""
        return sum(box_units(batch.inputs["labels"]))

    def forward(self, model: nn.Module, batch: Batch) -> DetectionOutputs:
        """Logits [B, Q, C], boxes [B, Q, 4], and with targets the deferred loss; pixels in the dtype of the weights."""
        return detect(model, pixel_values(batch.inputs, next(model.parameters()).dtype, innermost=False))

    def loss_sum(self, artifacts: TaskArtifacts, outputs: DetectionOutputs, batch: Batch) -> torch.Tensor:
        """The model's own loss, summed over boxes."""
        return detection_loss_sum(outputs.loss, batch.inputs["labels"])

    def decode(self, artifacts: TaskArtifacts, outputs: DetectionOutputs, batch: Batch) -> list[Answer]:
        """The 100 best boxes of each image, in its own pixels."""
        decoded = decode_boxes(outputs.logits, outputs.boxes, softmax=outputs.family.softmax)
        answers = []
        for id, one, (width, height), place in zip(
            batch.ids, decoded, batch.meta["sizes"], batch.meta["places"], strict=True
        ):
            corners = one["corners"].double() * torch.tensor([width, height] * 2, dtype=torch.float64)
            detections = {
                "boxes": xywh(corners.tolist()),
                "labels": one["labels"].tolist(),
                "scores": [round(score, 5) for score in one["scores"].tolist()],
            }
            shown = {"image": place, "predicted": count_clear(artifacts, detections)}
            answers.append(Answer(id, {"detections": detections}, shown))
        return answers

    def record_fields(self, artifacts: TaskArtifacts, options: RecordOptions) -> Fields:
        """The boxes with their classes, in pixels: left, top, width, height; those from options.threshold (0.5) on."""
        refuse_options(options, CARD.name, takes=("threshold",))
        return {"boxes": [{"label": "text", "score": "number", "box": ["number"]}]}

    def record(self, artifacts: TaskArtifacts, answer: Answer, options: RecordOptions) -> dict[str, Any]:
        """See record_fields. Raises: BadRow for an answer with numbers that are not finite."""
        found = answer.values["detections"]
        limit = CLEAR if options.threshold is None else options.threshold
        boxes = [
            {"label": artifacts.labels[label], "score": figure(score), "box": [figure(side) for side in box]}
            for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True)
            if not score < limit
        ]
        return {"boxes": boxes}

    def score(self, artifacts: TaskArtifacts, outputs: DetectionOutputs, batch: Batch) -> list[Score]:
        """What each image holds, and its loss."""
        labels = batch.inputs["labels"]
        losses = torch.stack(detection_losses(outputs.loss, labels)).tolist()
        rows = zip(batch.ids, losses, box_units(labels), batch.targets["objects"], strict=True)
        return [
            Score(id, loss, units, {"objects": objects}, {"expected": count_classes(artifacts, objects["labels"])})
            for id, loss, units, objects in rows
        ]

    def metric_options(self, artifacts: TaskArtifacts) -> dict[str, Any]:
        """Names of the classes."""
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
        """What each image holds, and what was found; drawn into `pictures` where it is given."""
        with eval_mode(model) as device:
            batch = self.collate(artifacts, examples).to(device)
            answers = self.decode(artifacts, self.forward(model, batch), batch)
        rows = []
        for answer, example in zip(answers, examples, strict=True):
            row = {
                "id": str(answer.id),
                "input": str(answer.shown["image"]),
                "expected": count_classes(artifacts, example["objects"]["labels"]),
                "predicted": str(answer.shown["predicted"]),
            }
            if pictures is not None:
                row |= pictures.save(f"{answer.id}.png", partial(draw_answer, artifacts, answer, example))
            rows.append(row)
        return rows


def _config_settings(plan: Plan) -> dict[str, Any]:
    """What the recipe's other keys mean for the configuration: BatchNorm of the backbone, and positions' image size."""
    recipe = plan.recipe
    config = load_config(recipe.model)
    settings: dict[str, Any] = {}
    if hasattr(config, "freeze_backbone_batch_norms") and "freeze_backbone_batch_norms" not in recipe.model.config:
        settings["freeze_backbone_batch_norms"] = plan.training.batch_norm == "frozen"
    size = getattr(recipe.options, "image_size", None)
    if size is not None and recipe.model.init == "config" and hasattr(config, "image_size"):
        settings["image_size"] = [size, size]
    return settings


TASK = ObjectDetection()
