"""The card of object_detection: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.metrics.catalogue import metrics_of
from finetune.recipe.card import AnswerSpec, BatchSpec, LossSpec, MetricSpec, ModelSpec, RowSpec, TaskCard
from finetune.tasks.vision.options import ImageOptions


class ObjectDetectionOptions(ImageOptions):
    image_size: int | None = Field(
        default=None,
        ge=32,
        description="Side of the square input in pixels. Default: the image processor's size, or 640.",
    )
    augment: Literal["none", "flip", "crop_flip"] = Field(
        default="none",
        description="Random augmentation of training images and their boxes. flip: horizontal flip; crop_flip: also crop and "
        "change the brightness.",
    )
    box_format: Literal["xywh", "xyxy", "cxcywh", "normalized_xywh", "normalized_xyxy", "normalized_cxcywh"] | None = (
        Field(
            default=None,
            description="What the four numbers of a box are: xywh: left, top, width, height; xyxy: left, top, right, bottom; "
            "cxcywh: center, width, height; in pixels, or normalized_: as fractions of the image's width and height. Default: "
            "xywh, and an error if the boxes of a split contradict it.",
        )
    )
    mean: list[float] = Field(
        default_factory=list, description="Per channel, after scaling to 0..1. Default: as trained."
    )
    std: list[float] = Field(
        default_factory=list, description="Per channel, after scaling to 0..1. Default: as trained."
    )
    labels: list[str] = Field(
        default_factory=list,
        description="Class names: in the order of the indices if the data has 0, 1, ...; otherwise all allowed names. "
        "Default: the names in the data.",
    )
    new_head: bool = Field(
        default=False, description="Train new class weights even if the checkpoint has them. Its box weights are kept."
    )


BOXES_ELSEWHERE = (
    "If boxes are in a COCO file, give it as the source, and the folder of its images as `images:`; of a YOLO data set, give "
    "data.yaml"
)

CARD = TaskCard(
    name="object_detection",
    summary="Find objects in images: D-FINE, RT-DETRv2, Deformable DETR, YOLOS.",
    rows=RowSpec(
        columns={
            "image": "The image: a file, its bytes, or a data URI.",
            "objects": "What it shows: {bbox: [[x, y, width, height], ...] in pixels, category: [name or number, ...]}.",
        },
        required=(("image",), ("objects",)),
        targets=("objects",),
        line_role="image",
        class_role="objects",
        column_hints={"label": BOXES_ELSEWHERE},
    ),
    metrics=MetricSpec(available=metrics_of("detections", "objects"), default=("map",), best="map"),
    loss=LossSpec(
        unit="object",
        note="training adds augmented images, auxiliary losses of every layer and denoising queries, so the two lines are "
        "not on one scale",
    ),
    model=ModelSpec(auto_class="AutoModelForObjectDetection", outputs=("logits", "pred_boxes"), stages="parts"),
    batches=BatchSpec(micro_batch=8, decodes=True),
    answers=AnswerSpec(
        pieces="boxes", picture_legend="boxes of the data in white, those that were found in the color of their class"
    ),
    options=ObjectDetectionOptions,
)
