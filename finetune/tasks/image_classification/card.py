"""The card of image_classification: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.recipe.card import TaskCard
from finetune.recipe.section import Section
from finetune.tasks.class_metrics import DEFAULT_METRICS, METRICS


class ImageClassificationOptions(Section):
    image_size: int | None = Field(
        default=None, ge=1, description="Edge in pixels of the square that the model sees. Default: the model's own."
    )
    augment: Literal["none", "flip", "crop_flip", "strong"] = Field(
        default="none",
        description="Chance changes of training images: mirrored; a chance crop and mirrored; or (strong) that, two "
        "changes of colour, sharpness or angle, and a patch erased.",
    )
    mixup: float = Field(
        default=0.0, ge=0, description="Alpha of mixup, such as 0.2: images blended in pairs; 0: none."
    )
    cutmix: float = Field(
        default=0.0, ge=0, description="Alpha of CutMix, such as 1.0: a patch of another image; 0: none."
    )
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        default="none",
        description="Weight of each class in the loss: balanced (rare classes count more, 1 on average over the "
        "training images), or by name, 1 for those not named.",
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = Field(
        default=None, description="How images are resized. Default: the model's own way, or bilinear."
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
    new_head: bool = Field(default=False, description="Train a new head, even if the checkpoint has one.")


CARD = TaskCard(
    name="image_classification",
    auto_model="AutoModelForImageClassification",
    summary="Classify an image: CNNs such as ResNet and ConvNeXt, and vision transformers.",
    columns={"image": "The image: a file, or its bytes.", "label": "The class: a name or a number."},
    required=(("image",), ("label",)),
    metrics=METRICS,
    default_metrics=DEFAULT_METRICS,
    best="accuracy",
    unit="image",
    decodes=True,
    options=ImageClassificationOptions,
    label_smoothing=True,
    micro_batch=32,
    splits=("pipeline",),
)
