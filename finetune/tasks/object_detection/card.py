"""The card of object_detection: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.recipe.card import TaskCard
from finetune.recipe.section import Section


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
    auto_model="AutoModelForObjectDetection",
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
