"""Finds boxes that are not [left, top, width, height] in pixels although each could be: only a whole split shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.images import image_size
from finetune.data.table import Row, Table, role_values
from finetune.errors import UserError
from finetune.tasks.vision.boxes import SLACK, as_xywh, box_format_of, box_numbers, objects_columns
from finetune.tasks.vision.frames import declared_size

Box = tuple[float, float, float, float]

SHARE = 1.001  # values of normalized boxes, with what rounding adds
MANY = 0.1  # share of the boxes that leave their image as xywh, from which a split is taken for xyxy
SUSPICIOUS = 10  # boxes, all of which could be xyxy, from which this is worth a note


def check_box_format(table: Table) -> str:
    """A note on what the boxes might be besides xywh in pixels, or "".

    Images are opened only if every box of the split could be xyxy and rows have no width and height.
    Raises: UserError if all values are shares of the image, or if many boxes leave their image that as xyxy would not.
    """
    count, shares, corners, first = 0, True, True, 0
    for index, objects in enumerate(role_values(table, "objects")):
        for box in _boxes(objects):
            first = first if count else index
            count += 1
            shares = shares and all(0 <= value <= SHARE for value in box)
            corners = corners and box[2] > box[0] and box[3] > box[1]
        if not shares and not corners:
            return ""
    if count and shares:
        raise UserError(
            f"{table.name}: no box is larger than one pixel; all values of the {count:,} boxes lie between 0 and 1, as "
            "fractions of the image size do",
            where=table.place(first),
            remedy="Boxes are [left, top, width, height] in pixels. For others, set options.box_format: normalized_cxcywh "
            "(as YOLO writes them), normalized_xywh or normalized_xyxy; or xywh if they are pixels after all.",
        )
    return _check_corners(table, count) if count and corners else ""


def _check_corners(table: Table, count: int) -> str:
    """The check of a split whose boxes all have [2] > [0] and [3] > [1], as corners do."""
    outside, first = 0, 0
    for index, row in enumerate(table):
        boxes = list(_boxes(row.get("objects")))
        size = _size(row) if boxes else None
        if size is None:
            continue
        if any(_leaves(box, "xyxy", size) for box in boxes):
            return ""
        leaving = sum(_leaves(box, "xywh", size) for box in boxes)
        first = first if outside else index
        outside += leaving
    if outside and outside >= MANY * count:
        raise UserError(
            f"{table.name}: {outside:,} of {count:,} boxes leave their image as [left, top, width, height], and none does as "
            "[left, top, right, bottom]",
            where=table.place(first),
            remedy="Set options.box_format: xyxy; or xywh if they are widths and heights after all.",
        )
    if count >= SUSPICIOUS or outside:
        return (
            f"{table.name}: all {count:,} boxes could be [left, top, right, bottom] as well; they are read as "
            "[left, top, width, height] (options.box_format)"
        )
    return ""


def _boxes(objects: Any) -> Iterator[Box]:
    """The boxes that have four numbers; others are reported when rows are checked. None where the objects say their form."""
    try:
        boxes = [] if box_format_of(objects) else objects_columns(objects)[0]
    except BadRow:
        return
    for box in boxes:
        try:
            yield box_numbers(box)
        except BadRow:
            continue


def _size(row: Row) -> tuple[int, int] | None:
    try:
        return declared_size(row) or image_size(row.get("image"))
    except BadRow:
        return None


def _leaves(box: Box, form: str, size: tuple[int, int]) -> bool:
    x, y, wide, high = as_xywh(box, form, *size)
    return min(x, y) < -SLACK or x + wide > size[0] + SLACK or y + high > size[1] + SLACK
