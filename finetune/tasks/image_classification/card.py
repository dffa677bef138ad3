"""The card of image_classification: columns, options, metrics. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.recipe.card import AnswerSpec, BatchSpec, LossSpec, MetricSpec, ModelSpec, RowSpec, TaskCard
from finetune.tasks.class_metrics import DEFAULT_METRICS, METRICS
from finetune.tasks.vision.options import ImageOptions


class ImageClassificationOptions(ImageOptions):
    image_size: int | None = Field(
        default=None, ge=1, description="Side of the square input in pixels. Default: the image processor's size."
    )
    augment: Literal["none", "flip", "crop_flip", "strong"] = Field(
        default="none",
        description="Random augmentation of training images. flip: horizontal flip; crop_flip: resized crop and flip; "
        "strong: crop and flip, two changes of color, sharpness or angle, and random erasing.",
    )
    mixup: float = Field(
        default=0.0, ge=0, description="Alpha of mixup (pairs of images are blended), such as 0.2. 0: off."
    )
    cutmix: float = Field(
        default=0.0, ge=0, description="Alpha of CutMix (a patch comes from another image), such as 1.0. 0: off."
    )
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        default="none",
        description="Weight of each class in the loss. balanced: inversely proportional to its frequency, 1 on average over "
        "the training images. Or a weight per class name; 1 for the others.",
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = Field(
        default=None, description="Interpolation when resizing. Default: the image processor's, or bilinear."
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
    new_head: bool = Field(default=False, description="Train a new head even if the checkpoint has one.")


CARD = TaskCard(
    name="image_classification",
    summary="Classify an image: CNNs such as ResNet and ConvNeXt, and vision transformers.",
    rows=RowSpec(
        columns={"image": "The image: a file, its bytes, or a data URI.", "label": "The class: a name or a number."},
        required=(("image",), ("label",)),
        targets=("label",),
        line_role="image",
        class_role="label",
    ),
    metrics=MetricSpec(available=METRICS, default=DEFAULT_METRICS, best="accuracy"),
    loss=LossSpec(unit="image", label_smoothing=True),
    model=ModelSpec(auto_class="AutoModelForImageClassification", splits=("pipeline",), stages="blocks", embeds=True),
    batches=BatchSpec(micro_batch=32, decodes=True),
    answers=AnswerSpec(pieces="images", merges=("mean", "max")),
    options=ImageClassificationOptions,
)
