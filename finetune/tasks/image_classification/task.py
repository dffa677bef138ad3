"""Image classification: CNNs (ResNet, ConvNeXt) and vision transformers, through transformers' own models.

Shapes: B images, K colour channels, H x W pixels (one size for all), C classes. Unit of loss: one image.
Pixels are decoded when an example is asked for; a pass before the first step finds the images that cannot be decoded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from finetune.data.images import decode_image
from finetune.data.prepare.encode import encode
from finetune.data.table import Row, Table
from finetune.recipe.card import TaskCard
from finetune.recipe.recipe import Recipe
from finetune.recipe.section import Section
from finetune.tasks.classes import (
    DEFAULT_METRICS,
    METRICS,
    class_counts,
    class_predictions,
    classification_loss_sum,
    decide_classes,
    label_tensor,
    name_of,
    named,
    trained_labels,
    weigh_classes,
    weighted_loss_sum,
)
from finetune.tasks.eval_mode import eval_mode
from finetune.tasks.task import Batch, Kit, Prediction
from finetune.tasks.vision.mixing import choose_mix, mix_pixels
from finetune.tasks.vision.transforms import ImageExamples, ImageTransform

if TYPE_CHECKING:
    import torch
    from torch import nn

HEAD = "ForImageClassification"


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


class _Example:
    """(row, id) -> {"pixel_values": float32 [K, H, W], "label": int, "place": "train.parquet row 16"}; picklable.

    ids: of all examples of the split, for partners of mixup and CutMix; then "partner" (its label) and "share" besides.
    """

    def __init__(
        self, pixels: ImageTransform, labels: Any, table: Table, ids: Sequence[int], mixup: float, cutmix: float
    ) -> None:
        self.pixels, self.labels, self.table, self.ids = pixels, labels, table, ids
        self.mixup, self.cutmix = mixup, cutmix

    def __call__(self, row: Row, example_id: int) -> dict[str, Any]:
        example = {
            "pixel_values": self.pixels(row["image"], example_id),
            "label": self.labels.index(row["label"]),
            "place": self.table.place(example_id),
        }
        options: dict[str, Any] = {"mixup": self.mixup, "cutmix": self.cutmix, "seed": self.pixels.seed}
        mix = choose_mix(example_id, len(self.ids), epoch=self.pixels.epoch, **options)
        if mix is not None:
            partner_id = int(self.ids[mix.partner])
            partner = self.table[partner_id]
            other = self.pixels(partner["image"], partner_id)
            example["pixel_values"], example["share"] = mix_pixels(example["pixel_values"], other, mix)
            example["partner"] = self.labels.index(partner["label"])
        return example


class ImageClassification:
    """The task; see Task for what each method promises."""

    card = CARD

    def read(self, recipe: Recipe, tables: dict[str, Table]) -> Kit:
        """Processor, classes, examples. Raises: UserError for images that cannot be decoded and labels that do not fit."""
        from finetune.models.config import load_config
        from finetune.models.processor import load_processor, num_channels, output_size

        options = _options(recipe)
        config = load_config(recipe.model, **_size(recipe))
        processor = load_processor(
            recipe.model,
            config,
            image_size=options.image_size,
            mean=options.mean,
            std=options.std,
            interpolation=options.interpolation,
        )
        trained = None
        if recipe.model.init == "pretrained" and not options.new_head:
            trained = trained_labels(config, HEAD)
        classes = decide_classes(tables, options.labels, trained, several=False, where=recipe.model.source)
        kit = Kit(recipe, processor, {}, tables, labels=classes.names)
        kit.metric_options = {"labels": classes.names, "num_labels": len(classes.names), "multi_label": False}
        size, channels = output_size(processor, config), num_channels(config)
        assert size is not None, "load_processor promises one size"
        for name, table in tables.items():
            pixels = ImageTransform(
                processor, size, channels, options.augment if name == "train" else "none", recipe.seed
            )
            kit.examples[name] = self._verify(kit, table, classes.lookup, pixels)
        return kit

    def _verify(self, kit: Kit, table: Table, labels: Any, pixels: ImageTransform) -> ImageExamples:
        """Decodes every image once, in any run; what is left are the rows that training will not stumble over."""
        area = pixels.size[0] * pixels.size[1]
        verified = encode(
            table,
            _Verifier(labels),
            key=json.dumps([CARD.name, 1, labels.names]),
            on_bad_row=kit.recipe.data.on_bad_row,
            cost=lambda example: 1,
        )
        counts = class_counts((example["label"] for example in verified), kit.labels or [])
        skipped = f", {verified.skipped_count:,} bad rows skipped" if verified.skipped_count else ""
        kit.facts[table.name] = f"{len(verified):,} images of {pixels.size[1]} x {pixels.size[0]}{skipped}"
        kit.facts[f"{table.name} classes"] = counts
        options, training = _options(kit.recipe), table.name == "train"
        if training:
            kit.class_weights = weigh_classes(options.class_weights, counts)
        ids = verified.ids.tolist()
        mixup, cutmix = (options.mixup, options.cutmix) if training else (0.0, 0.0)
        return ImageExamples(table, ids, _Example(pixels, labels, table, ids, mixup, cutmix), [area] * len(verified))

    def build(self, kit: Kit) -> nn.Module:
        """The network with its head; BatchNorm frozen where the recipe says so. All ranks call it."""
        from transformers import AutoModelForImageClassification

        from finetune.models.adapters import add_adapter
        from finetune.models.batchnorm import freeze_batchnorm
        from finetune.models.head import head_names
        from finetune.models.load import choose_dtype, load_config, load_model

        recipe = kit.recipe
        model, loading = load_model(
            AutoModelForImageClassification,
            recipe.model,
            load_config(recipe.model, **_size(recipe), **named(kit.labels or [])),
            dtype=choose_dtype(recipe),
            seed=recipe.seed,
            new_head=_options(recipe).new_head,
        )
        kit.facts.update(loading.facts())
        asked = recipe.model.batch_norm
        if asked == "frozen" or (asked == "auto" and recipe.model.init == "pretrained"):
            freeze_batchnorm(model)
        if recipe.adapter is not None:
            model = add_adapter(model, recipe.adapter, None, head_names(model), seed=recipe.seed)
        return model

    def collate(self, kit: Kit, examples: Sequence[dict[str, Any]]) -> Batch:
        """[{"pixel_values": [K, H, W], "label": 3}, ...] -> pixel_values [B, K, H, W], labels [B]."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.stack([example["pixel_values"] for example in examples]))
        labels = label_tensor([example["label"] for example in examples], len(kit.labels or ()), several=False)
        targets: dict[str, Any] = {"labels": labels, "places": [str(example["place"]) for example in examples]}
        if "share" in examples[0]:
            targets["partners"] = torch.tensor([int(example["partner"]) for example in examples])
            targets["shares"] = torch.tensor([float(example["share"]) for example in examples])
        return Batch(
            ids=tuple(int(example["id"]) for example in examples),
            inputs={"pixel_values": pixels},
            targets=targets,
            positions=len(examples) * pixels.shape[-1] * pixels.shape[-2],
        )

    def weight(self, batch: Batch) -> int:
        """Images."""
        return len(batch.ids)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs with logits [B, C]; pixels in the type of the weights."""
        inputs = dict(batch.inputs)
        inputs["pixel_values"] = inputs["pixel_values"].to(next(model.parameters()).dtype)
        return model(**inputs)

    def loss_sum(self, kit: Kit, outputs: Any, batch: Batch) -> torch.Tensor:
        """Summed over images, with training.label_smoothing, class weights, and labels shared by mixed images.

        Class weights are for training alone: predictions, and with them validation, tell the plain loss.
        """
        smoothing, targets = kit.recipe.training.label_smoothing, batch.targets
        if kit.class_weights is None and "shares" not in targets:
            labels = targets["labels"]
            return classification_loss_sum(outputs.logits, labels, label_smoothing=smoothing)
        return weighted_loss_sum(
            outputs.logits,
            targets["labels"],
            partners=targets.get("partners"),
            shares=targets.get("shares"),
            class_weights=kit.class_weights,
            label_smoothing=smoothing,
        )

    def predict(self, kit: Kit, outputs: Any, batch: Batch) -> list[Prediction]:
        """Class, reference and scores; where the image lies in the data."""
        shown = [{"image": place} for place in batch.targets["places"]]
        return class_predictions(outputs.logits, batch, kit.labels or [], shown)

    def sample(
        self, kit: Kit, model: nn.Module, examples: Sequence[dict[str, Any]], *, synced: bool
    ) -> list[dict[str, str]]:
        """Places of images with the expected and the predicted class."""
        with eval_mode(model) as device:
            batch = self.collate(kit, examples).to(device)
            predictions = self.predict(kit, self.forward(model, batch), batch)
        return [
            {
                "id": str(prediction.id),
                "input": str(prediction.shown["image"]),
                "expected": name_of(prediction.values["reference"], kit.labels or []),
                "predicted": name_of(prediction.values["prediction"], kit.labels or []),
            }
            for prediction in predictions
        ]


class _Verifier:
    """A row -> {"label": int}, once its image was decoded in full. Raises: BadRow."""

    def __init__(self, labels: Any) -> None:
        self.labels = labels

    def __call__(self, row: Row) -> dict[str, Any]:
        label = self.labels.index(row["label"])
        decode_image(row["image"])
        return {"label": label}


def _size(recipe: Recipe) -> dict[str, Any]:
    """A model with random weights and learnt positions is made for the recipe's image_size."""
    size = _options(recipe).image_size
    if size is None or recipe.model.init != "config" or "image_size" in recipe.model.config:
        return {}
    from finetune.models.config import load_config
    from finetune.models.processor import model_size

    return {"image_size": size} if model_size(load_config(recipe.model)) is not None else {}


def _options(recipe: Recipe) -> ImageClassificationOptions:
    assert isinstance(recipe.options, ImageClassificationOptions)
    return recipe.options
