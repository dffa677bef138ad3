"""Images and their labels as examples: checked once, then decoded when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.images import read_image
from finetune.data.labels import Labels
from finetune.data.pixels import ValueRange
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.table import Row, Table
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.inputs import encode_each
from finetune.tasks.vision.mixing import choose_mix, mix_pixels
from finetune.tasks.vision.transforms import ImageTransform


class ImageWithLabel:
    """(row, id) -> {"pixel_values": [K, H, W], see ImageTransform, "label": int, "place": "train.parquet row 16"}; picklable.

    ids: of all examples of the split, for partners of mixup and CutMix; then "partner" (its label) and "share" as well.
    """

    def __init__(
        self, pixels: ImageTransform, labels: Labels, table: Table, ids: Sequence[int], mixup: float, cutmix: float
    ) -> None:
        self.pixels, self.labels, self.table, self.ids = pixels, labels, table, ids
        self.mixup, self.cutmix = mixup, cutmix

    def __call__(self, row: Row, example_id: int) -> dict[str, Any]:
        example: dict[str, Any] = {
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


def image_transform(artifacts: TaskArtifacts, *, augment: str, seed: int) -> ImageTransform:
    """The transform of the artifacts' processor, with random augmentation or "none"."""
    height, width = artifacts.settings["image_size"]
    channels, value_range = artifacts.settings["channels"], artifacts.options.value_range
    return ImageTransform(artifacts.processor, (height, width), channels, augment, seed, value_range)


def encode_rows(artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
    """{"pixel_values", "place" and with targets "label"} per row, without augmentation; or a BadRow."""
    transform, classes = image_transform(artifacts, augment="none", seed=0), artifacts.classes
    assert classes is not None

    def encode(row: Row) -> dict[str, Any]:
        example: dict[str, Any] = {"pixel_values": transform(row.get("image"), 0), "place": ""}
        return {**example, "label": classes.lookup.index(row.get("label"))} if with_targets else example

    return encode_each(rows, encode)


def check_rows(labels: Labels, value_range: ValueRange | None, rows: Sequence[Row]) -> list[dict[str, Any] | BadRow]:
    """{"label": int, "notices"} per row, once its image was decoded in full; or a BadRow."""

    def check(row: Row) -> dict[str, Any]:
        label = labels.index(row["label"])
        return {"label": label, NOTICES: list(read_image(row["image"], value_range).notices)}

    return encode_each(rows, check)
