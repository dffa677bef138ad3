"""Images with boxes as examples: checked once, then decoded and transformed when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.images import decode_image
from finetune.data.labels import Labels, in_order, label_text
from finetune.data.prepare.encode import EncodedExamples
from finetune.data.table import Row, Table
from finetune.errors import UserError
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.inputs import encode_each
from finetune.tasks.vision.boxes import Objects, check_objects, xywh
from finetune.tasks.vision.detection_transforms import DetectionTransform


class ImageWithBoxes:
    """(row, id) -> pixels, targets, and the objects that detections are compared with; picklable."""

    def __init__(
        self, pixels: DetectionTransform, checked: EncodedExamples, indices: dict[int, int], table: Table
    ) -> None:
        self.pixels, self.checked, self.indices, self.table = pixels, checked, indices, table

    def __call__(self, row: Row, example_id: int) -> dict[str, Any]:
        known = self.checked[self.indices[example_id]]
        objects = Objects(known["corners"], list(known["labels"]), list(known["crowd"]))
        return {
            **self.pixels(row["image"], objects, example_id),
            "size": known["size"],
            "objects": objects_in_pixels(objects),
            "place": self.table.place(example_id),
        }


def objects_in_pixels(objects: Objects) -> dict[str, Any]:
    """{"boxes": [[left, top, width, height], ...] in pixels, "labels", "crowd"}: plain values, as metrics take them."""
    return {
        "boxes": xywh(objects.corners),
        "labels": [int(label) for label in objects.labels],
        "crowd": [int(crowd) for crowd in objects.crowd],
    }


def detection_transform(artifacts: TaskArtifacts, *, augment: str, seed: int) -> DetectionTransform:
    """The transform of the artifacts' processor, with random augmentation or "none"."""
    height, width = artifacts.settings["image_size"]
    return DetectionTransform(artifacts.processor, (height, width), augment, seed)


def encode_rows(artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
    """{"pixel_values", "size", "place" and with targets "boxes", "class_labels", "objects"} per row, without
    augmentation; or a BadRow.
    """
    transform, classes = detection_transform(artifacts, augment="none", seed=0), artifacts.classes
    assert classes is not None

    def encode(row: Row) -> dict[str, Any]:
        image = decode_image(row.get("image"))
        size = [image.width, image.height]
        objects = Objects([], [], [])
        if with_targets:
            objects = usable_objects(row.get("objects"), classes.lookup, image.width, image.height, skip=False)
        example = {**transform(row["image"], objects, 0), "size": size, "place": ""}
        if with_targets:
            return {**example, "objects": objects_in_pixels(objects)}
        return {name: example[name] for name in ("pixel_values", "size", "place")}

    return encode_each(rows, encode)


def usable_objects(value: Any, labels: Labels, width: int, height: int, *, skip: bool) -> Objects:
    """The objects of an image. skip: bad boxes are left out and listed; else they make the row a bad one.

    Raises: BadRow.
    """
    objects = check_objects(value, labels, width, height)
    if objects.bad and not skip:
        raise BadRow("; ".join(f"annotation {name}: {why}" for name, why in objects.bad))
    return objects


def check_rows(labels: Labels, rows: Sequence[Row], *, skip: bool) -> list[dict[str, Any] | BadRow]:
    """Per row its objects with corners inside the image, once the image was decoded in full; or a BadRow."""

    def check(row: Row) -> dict[str, Any]:
        width, height = decode_image(row["image"]).size
        objects = usable_objects(row["objects"], labels, width, height, skip=skip)
        return {
            "corners": objects.corners,
            "labels": objects.labels,
            "crowd": objects.crowd,
            "size": [width, height],
            "bad": [list(one) for one in objects.bad],
        }

    return encode_each(rows, check)


def class_names_of(table: Table) -> list[str]:
    """Names of classes in the training data: whole numbers by value, else A to Z. Raises: UserError if there are none."""
    named_by_data = getattr(table, "classes", {}).get("objects")
    if named_by_data:
        return list(named_by_data)
    names: set[str] = set()
    for row in table:
        try:
            names.update(map(label_text, _categories(row["objects"])))
        except BadRow:
            continue  # reported, with its place, when boxes are checked
    if not names:
        raise UserError("no box at all: there is nothing to learn", where=table.name, remedy="Check data.columns.")
    return in_order(names)


def _categories(objects: Any) -> list[Any]:
    if isinstance(objects, dict):
        return list(objects.get("category") or [])
    return [one.get("category") for one in objects if isinstance(one, dict)] if isinstance(objects, list) else []
