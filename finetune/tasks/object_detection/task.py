"""Object detection: boxes and classes of what an image shows, through transformers' detectors of the DETR family.

Shapes: B images, Q queries, C classes, H x W pixels (one size for all; boxes are shares of it). Unit of loss: one box;
an image without boxes counts as one. In evaluation mode the loss is the same however a batch is split. In training mode
denoising queries (D-FINE, RT-DETR; config num_denoising) draw noise on each rank, in groups as many as the fullest image
of a micro-batch allows: there, as with dropout, sums over other splits agree on average only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from finetune.data.bad_rows import SHOWN, BadRow
from finetune.data.images import decode_image
from finetune.data.labels import in_order, label_text
from finetune.data.prepare.encode import EncodedExamples, encode
from finetune.data.table import Row, Table
from finetune.errors import UserError
from finetune.recipe.card import TaskCard
from finetune.recipe.recipe import Recipe
from finetune.recipe.section import Section
from finetune.tasks.classes import choose_classes, named, trained_labels
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.task import Batch, Kit, Prediction
from finetune.tasks.vision.boxes import Objects, check_objects, xywh
from finetune.tasks.vision.detection_transforms import DetectionTransform
from finetune.tasks.vision.drawing import draw_detections, save_picture
from finetune.tasks.vision.transforms import ImageExamples

if TYPE_CHECKING:
    import torch
    from torch import nn

HEAD = "ForObjectDetection"
PROCESSORS = {"yolos": "YolosImageProcessorPil", "detr": "DetrImageProcessorPil"}
PROCESSOR = "RTDetrImageProcessorPil"
CLEAR = 0.5  # score from which a detection is shown to people
# DeepSpeed's own linear function for ZeRO-3 drops a weight between forward and backward pass and looks it up again; D-FINE
# also computes linear functions of tensors that are no weights (the bins of its boxes' distributions).
ODD_LINEAR = {"d_fine"}


class ObjectDetectionOptions(Section):
    image_size: int | None = Field(
        default=None,
        ge=32,
        description="Edge in pixels of the square that the model sees. Default: the processor's, or 640.",
    )
    augment: Literal["none", "flip", "crop_flip"] = Field(
        default="none",
        description="Chance changes of training images, boxes with them: mirrored, or also cropped and brightened.",
    )
    mean: list[float] = Field(
        default_factory=list, description="Per channel, after scaling to 0..1. Default: as trained."
    )
    std: list[float] = Field(
        default_factory=list, description="Per channel, after scaling to 0..1. Default: as trained."
    )
    labels: list[str] = Field(
        default_factory=list,
        description="Names of the classes in order, where the data holds 0, 1, ...; or all there may be. Default: as found.",
    )
    new_head: bool = Field(
        default=False, description="Train new class weights, even if the checkpoint has them; boxes stay as trained."
    )


CARD = TaskCard(
    name="object_detection",
    summary="Find objects in images: D-FINE, RT-DETRv2, Deformable DETR, YOLOS.",
    columns={
        "image": "The image: a file, or its bytes.",
        "objects": "What it shows: {bbox: [[x, y, width, height], ...] in pixels, category: [name or number, ...]}.",
    },
    required=(("image",), ("objects",)),
    metrics=("map",),
    default_metrics=("map",),
    best="map",
    unit="object",
    decodes=True,
    options=ObjectDetectionOptions,
    micro_batch=8,
)


class _Example:
    """(row, id) -> pixels and targets, and what predictions are compared with; picklable."""

    def __init__(
        self, pixels: DetectionTransform, verified: EncodedExamples, places: dict[int, int], table: Table
    ) -> None:
        self.pixels, self.verified, self.places, self.table = pixels, verified, places, table

    def __call__(self, row: Row, example_id: int) -> dict[str, Any]:
        known = self.verified[self.places[example_id]]
        objects = Objects(known["corners"], list(known["labels"]), list(known["crowd"]))
        return {
            **self.pixels(row["image"], objects, example_id),
            "size": known["size"],
            "objects": {
                "boxes": xywh(objects.corners),
                "labels": [int(label) for label in objects.labels],
                "crowd": [int(crowd) for crowd in objects.crowd],
            },
            "place": self.table.place(example_id),
        }


class ObjectDetection:
    """The task; see Task for what each method promises."""

    card = CARD

    def zero_settings(self, config: Any) -> dict[str, Any]:
        """torch's own linear function where a model cannot do with DeepSpeed's."""
        return {"memory_efficient_linear": False} if config.model_type in ODD_LINEAR else {}

    def read(self, recipe: Recipe, tables: dict[str, Table]) -> Kit:
        """Processor, classes, examples. Raises: UserError for images and boxes that cannot be used."""
        from finetune.models.config import load_config
        from finetune.models.processor import load_processor, output_size

        options = _options(recipe)
        config: Any = load_config(recipe.model, **_settings(recipe))
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
        trained = None
        if recipe.model.init == "pretrained" and not options.new_head:
            trained = trained_labels(config, HEAD)
        classes = choose_classes(_found(tables["train"]), options.labels, trained, where=recipe.model.source)
        kit = Kit(recipe, processor, {}, tables, labels=classes.names)
        kit.metric_options = {"labels": classes.names}
        size = output_size(processor, config)
        assert size is not None, "load_processor promises one size"
        for name, table in tables.items():
            transform = DetectionTransform(processor, size, options.augment if name == "train" else "none", recipe.seed)
            kit.examples[name] = self._verify(kit, table, classes.lookup, transform)
        return kit

    def _verify(self, kit: Kit, table: Table, labels: Any, transform: DetectionTransform) -> ImageExamples:
        """Decodes every image and checks every box once, in any run."""
        policy = kit.recipe.data.on_bad_row
        verified = encode(
            table,
            _Verifier(labels, skip=policy == "skip"),
            key=json.dumps([CARD.name, 1, labels.names, policy]),
            on_bad_row=policy,
            cost=lambda example: 1,
        )
        boxes, empty, bad = Counter[str](), 0, []
        for example in verified:
            boxes.update(kit.labels[int(label)] for label in example["labels"])  # type: ignore[index]
            empty += not len(example["labels"])
            bad += [f"{table.place(example['id'])}, annotation {name}: {why}" for name, why in example["bad"]]
        skipped = f", {verified.skipped_count:,} bad rows skipped" if verified.skipped_count else ""
        kit.facts[table.name] = (
            f"{len(verified):,} images ({empty:,} without boxes), {boxes.total():,} boxes{skipped}; "
            f"seen as {transform.size[1]} x {transform.size[0]}"
        )
        kit.facts[f"{table.name} classes"] = dict(sorted(boxes.items()))
        if bad:
            more = f"\n  ... and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
            listed = "".join(f"\n  {line}" for line in bad[:SHOWN])
            kit.facts[f"{table.name} boxes left out"] = f"{len(bad):,}{listed}{more}"
        places = {int(row_id): index for index, row_id in enumerate(verified.ids)}
        area = transform.size[0] * transform.size[1]
        made = _Example(transform, verified, places, table)
        return ImageExamples(table, verified.ids.tolist(), made, [area] * len(verified))

    def build(self, kit: Kit) -> nn.Module:
        """The detector, its loss put off until `loss_sum`; BatchNorm frozen where the recipe says so. All ranks call it."""
        from transformers import AutoModelForObjectDetection

        from finetune.models.adapters import add_adapter
        from finetune.models.batchnorm import freeze_batchnorm
        from finetune.models.detection import class_modules, defer_loss, family_of, lower_prior
        from finetune.models.load import choose_dtype, load_config, load_model

        recipe = kit.recipe
        model, loading = load_model(
            AutoModelForObjectDetection,
            recipe.model,
            load_config(recipe.model, **_settings(recipe), **named(kit.labels or [])),
            dtype=choose_dtype(recipe),
            seed=recipe.seed,
            new_head=_options(recipe).new_head,
            heads=class_modules,
        )
        kit.facts.update(loading.facts())
        if _frozen(recipe):
            freeze_batchnorm(model)
        if loading.new_head and not family_of(model).softmax:
            lower_prior(model, loading.new_head)
        defer_loss(model)
        if recipe.adapter is not None:
            model = add_adapter(model, recipe.adapter, None, class_modules(model), seed=recipe.seed)
        return model

    def collate(self, kit: Kit, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"pixel_values": [3, H, W], "boxes": [n, 4], ...}] -> pixel_values [B, 3, H, W], labels: B dicts of targets."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.stack([example["pixel_values"] for example in examples]))
        targets = [
            {"class_labels": torch.from_numpy(example["class_labels"]), "boxes": torch.from_numpy(example["boxes"])}
            for example in examples
        ]
        return Batch(
            ids=tuple(int(example["id"]) for example in examples),
            inputs={"pixel_values": pixels, "labels": targets},
            targets={
                "objects": [example["objects"] for example in examples],
                "sizes": [[int(edge) for edge in example["size"]] for example in examples],
                "places": [str(example["place"]) for example in examples],
            },
            positions=len(examples) * pixels.shape[-1] * pixels.shape[-2],
        )

    def weight(self, batch: Batch) -> int:
        """Boxes; an image without any counts as one."""
        from finetune.models.detection import box_units

        return sum(box_units(batch.inputs["labels"]))

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [B, Q, C], pred_boxes [B, Q, 4], and the deferred loss; pixels in the weights' type."""
        inputs = dict(batch.inputs)
        inputs["pixel_values"] = inputs["pixel_values"].to(next(model.parameters()).dtype)
        return model(**inputs)

    def loss_sum(self, kit: Kit, outputs: Any, batch: Batch) -> torch.Tensor:
        """The model's own loss, summed over boxes."""
        from finetune.models.detection import detection_loss_sum

        return detection_loss_sum(outputs.loss_dict["deferred"], batch.inputs["labels"])

    def predict(self, kit: Kit, outputs: Any, batch: Batch) -> list[Prediction]:
        """The 100 best boxes of each image in its own pixels, what it holds, and its loss."""
        from finetune.models.detection import box_units, decode_boxes, detection_losses

        deferred, labels = outputs.loss_dict["deferred"], batch.inputs["labels"]
        losses = [x.item() for x in detection_losses(deferred, labels)]
        found = decode_boxes(outputs.logits, outputs.pred_boxes, softmax=deferred.family.softmax)
        rows = zip(batch.ids, found, losses, box_units(labels), *batch.targets.values(), strict=True)
        predictions = []
        for id, one, loss, units, objects, (width, height), place in rows:
            corners = one["corners"].cpu().double() * one["corners"].new_tensor([width, height] * 2).cpu().double()
            detections = {
                "boxes": xywh(corners.tolist()),
                "labels": one["labels"].tolist(),
                "scores": [round(score, 5) for score in one["scores"].tolist()],
            }
            shown = {
                "image": place,
                "expected": _told(kit, objects["labels"]),
                "predicted": _told(kit, _clear(detections)),
            }
            values = {"detections": detections, "objects": objects}
            predictions.append(Prediction(id, values, loss, units, shown))
        return predictions

    def sample(
        self, kit: Kit, model: nn.Module, examples: Sequence[dict[str, Any]], *, synced: bool
    ) -> list[dict[str, str]]:
        """What each image holds, and what was found; drawn into kit.pictures where the kit has such a folder."""
        with eval_mode(model) as device:
            batch = self.collate(kit, examples).to(device)
            predictions = self.predict(kit, self.forward(model, batch), batch)
        rows = []
        for prediction, example in zip(predictions, examples, strict=True):
            shown = prediction.shown
            row = {"id": str(prediction.id), "input": str(shown["image"])}
            row |= {"expected": str(shown["expected"]), "predicted": str(shown["predicted"])}
            if kit.pictures is not None:
                drawn = draw_detections(
                    example["pixel_values"], kit.processor, example["size"], example["objects"],
                    prediction.values["detections"], kit.labels or [], CLEAR,
                )  # fmt: skip
                row["picture"] = str(save_picture(drawn, kit.pictures / f"{prediction.id}.png"))
            rows.append(row)
        return rows


class _Verifier:
    """A row -> its objects with corners inside the image, once the image was decoded in full. Raises: BadRow.

    skip: bad boxes are left out and listed; else they make the row a bad one.
    """

    def __init__(self, labels: Any, *, skip: bool) -> None:
        self.labels, self.skip = labels, skip

    def __call__(self, row: Row) -> dict[str, Any]:
        width, height = decode_image(row["image"]).size
        found = check_objects(row["objects"], self.labels, width, height)
        if found.bad and not self.skip:
            raise BadRow("; ".join(f"annotation {name}: {why}" for name, why in found.bad))
        return {
            "corners": found.corners,
            "labels": found.labels,
            "crowd": found.crowd,
            "size": [width, height],
            "bad": [list(one) for one in found.bad],
        }


def _found(table: Table) -> list[str]:
    """Names of classes in the training data, whole numbers by value, else A to Z. Raises: UserError if there are none."""
    named_by_data = getattr(table, "classes", {}).get("objects")
    if named_by_data:
        return list(named_by_data)
    names: set[str] = set()
    for row in table:
        try:
            names.update(map(label_text, _categories(row["objects"])))
        except BadRow:
            continue  # told, with its place, when boxes are checked
    if not names:
        raise UserError("no box at all: there is nothing to learn", where=table.name, remedy="Check data.columns.")
    return in_order(names)


def _categories(objects: Any) -> list[Any]:
    if isinstance(objects, dict):
        return list(objects.get("category") or [])
    return [one.get("category") for one in objects if isinstance(one, dict)] if isinstance(objects, list) else []


def _clear(detections: dict[str, Any]) -> list[int]:
    pairs = zip(detections["labels"], detections["scores"], strict=True)
    return [label for label, score in pairs if score >= CLEAR]


def _told(kit: Kit, labels: Sequence[int]) -> str:
    """[0, 2, 0] -> "2 circle, 1 triangle"."""
    counts = Counter(labels)
    return ", ".join(f"{counts[label]} {(kit.labels or [])[label]}" for label in sorted(counts)) or "(nothing)"


def _frozen(recipe: Recipe) -> bool:
    asked = recipe.model.batch_norm
    return asked == "frozen" or (asked == "auto" and recipe.model.init == "pretrained")


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What the recipe's other keys mean for the configuration: BatchNorm of the backbone, and positions' image size."""
    from finetune.models.config import load_config

    config = load_config(recipe.model)
    settings: dict[str, Any] = {}
    if hasattr(config, "freeze_backbone_batch_norms") and "freeze_backbone_batch_norms" not in recipe.model.config:
        settings["freeze_backbone_batch_norms"] = _frozen(recipe)
    size = _options(recipe).image_size
    if size is not None and recipe.model.init == "config" and hasattr(config, "image_size"):
        settings["image_size"] = [size, size]
    return settings


def _options(recipe: Recipe) -> ObjectDetectionOptions:
    assert isinstance(recipe.options, ObjectDetectionOptions)
    return recipe.options
