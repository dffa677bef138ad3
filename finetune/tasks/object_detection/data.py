"""Images with boxes as examples: checked once, then decoded and transformed when they are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.formats.annotations import NOTICES as FILE_NOTICES
from finetune.data.images import ImageHeader, Picture, read_image
from finetune.data.labels import Labels, in_order, label_text, spellings_by_class
from finetune.data.pixels import ValueRange
from finetune.data.prepare.encode import EncodedExamples
from finetune.data.prepare.notices import KEY as NOTICES
from finetune.data.table import Row, Table, role_values
from finetune.errors import UserError
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.inputs import encode_each
from finetune.tasks.vision.boxes import Objects, check_objects, objects_columns, xywh
from finetune.tasks.vision.detection_transforms import DetectionTransform
from finetune.tasks.vision.frames import find_frame


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
    return DetectionTransform(artifacts.processor, (height, width), augment, seed, artifacts.options.value_range)


def encode_rows(artifacts: TaskArtifacts, rows: Sequence[Row], *, with_targets: bool) -> list[dict[str, Any] | BadRow]:
    """{"pixel_values", "size", "place" and with targets "boxes", "class_labels", "objects"} per row, without
    augmentation; or a BadRow.
    """
    transform, classes = detection_transform(artifacts, augment="none", seed=0), artifacts.classes
    assert classes is not None
    reading = Reading.of(artifacts)

    def encode(row: Row) -> dict[str, Any]:
        picture = read_image(row.get("image"), reading.value_range)
        objects = usable_objects(row, picture, reading, skip=False) if with_targets else Objects([], [], [])
        example = {**transform(picture.rgb, objects, 0), "size": list(picture.rgb.size), "place": ""}
        if with_targets:
            return {**example, "objects": objects_in_pixels(objects)}
        return {name: example[name] for name in ("pixel_values", "size", "place")}

    return encode_each(rows, encode)


@dataclass(frozen=True)
class Reading:
    """How images and boxes are read: the classes, and the options box_format and value_range."""

    labels: Labels
    box_format: str
    value_range: ValueRange | None

    @classmethod
    def of(cls, artifacts: TaskArtifacts) -> Reading:
        assert artifacts.classes is not None
        options = artifacts.options
        return cls(artifacts.classes.lookup, options.box_format or "xywh", options.value_range)

    def key(self) -> list[Any]:
        """What the result of a check depends on, besides the row."""
        return [self.labels.names, self.box_format, self.value_range]


def usable_objects(row: Row, picture: Picture | ImageHeader, reading: Reading, *, skip: bool) -> Objects:
    """The objects of an image. skip: bad boxes are left out and listed; else they make the row a bad one.

    Raises: BadRow.
    """
    frame = find_frame(row, picture)
    objects = check_objects(row.get("objects"), reading.labels, frame, reading.box_format)
    if objects.bad and not skip:
        raise BadRow("; ".join(f"annotation {name}: {why}" for name, why in objects.bad))
    if objects.corners:
        objects.notices.extend(frame.notices)
    return objects


def check_rows(reading: Reading, rows: Sequence[Row], *, skip: bool) -> list[dict[str, Any] | BadRow]:
    """Per row its objects with corners inside the image, once the image was decoded in full; or a BadRow."""

    def check(row: Row) -> dict[str, Any]:
        picture = read_image(row["image"], reading.value_range)
        objects = usable_objects(row, picture, reading, skip=skip)
        return {
            "corners": objects.corners,
            "labels": objects.labels,
            "crowd": objects.crowd,
            "size": list(picture.rgb.size),
            "bad": [list(one) for one in objects.bad],
            NOTICES: [*picture.notices, *objects.notices, *row.get(FILE_NOTICES, ())],
        }

    return encode_each(rows, check)


def class_names_of(table: Table) -> list[str]:
    """Names of classes in the training data: whole numbers by value, else A to Z. Raises: UserError if there are none."""
    named_by_data = getattr(table, "classes", {}).get("objects.category")
    if named_by_data:
        return list(named_by_data)
    names: Counter[str] = Counter()
    for objects in role_values(table, "objects"):
        for category in _categories(objects):
            try:
                names[label_text(category)] += 1
            except BadRow:
                continue  # reported, with its place, when boxes are checked
    if not names:
        raise UserError("no box at all: there is nothing to learn", where=table.name, remedy="Check data.columns.")
    return in_order(spellings_by_class(names))


def _categories(objects: Any) -> list[Any]:
    try:
        return objects_columns(objects)[1]
    except BadRow:
        return []
