"""Boxes of an image: checked against it, and carried along when the image is mirrored or cropped.

Boxes are float64 [boxes, 4]. "xywh": left, top, width, height in pixels, as data and predictions write them; "corners":
left, top, right, bottom in pixels; "centered": center x, center y, width, height as shares of the image, as models do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.data.bad_rows import BadRow
from finetune.data.formats.annotations import BOX_FORMAT
from finetune.data.image_values import shorten
from finetune.data.labels import Labels
from finetune.data.values import to_number
from finetune.tasks.vision.frames import Frame

SHOWN_ID = 60  # characters of an annotation id in messages
CLIPPED = "boxes reach up to 1.5 pixels beyond the image; they are cut at its edge"
REPEATED = "the same box of the same class occurs more than once; each is learned"
ROUNDING = 0.01  # pixels beyond the edge that come from rounded numbers and are not reported
SLACK = 1.5  # pixels that a box may reach beyond the image: annotation tools round
LEFT_OVER = 0.25  # share of a box that a crop must keep, or the box is dropped
BOX_FORMATS = ("xywh", "xyxy", "cxcywh", "normalized_xywh", "normalized_xyxy", "normalized_cxcywh")
CROP_AREA = (0.4, 1.0)
CROP_SHAPE = (0.6, 1.7)


@dataclass(frozen=True)
class Objects:
    """What lies in one image. corners: [[left, top, right, bottom], ...]. bad: (annotation id, why) of those left out.

    notices: what to report of the boxes that are kept.
    """

    corners: list[list[float]]
    labels: list[int]
    crowd: list[int]
    bad: list[tuple[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def check_objects(objects: Any, labels: Labels, frame: Frame, form: str = "xywh") -> Objects:
    """The objects of an image, in the pixels of the upright image; those that cannot be used are in `bad`, with the reason.

    frame: the pixels on which the boxes were drawn. form: what the four numbers of a box are, as options.box_format
    names it, unless the objects say so themselves.
    A box that reaches at most 1.5 pixels beyond the frame is clipped at its edge.
    Raises: BadRow if `objects` has not the form {"bbox": [[x, y, w, h], ...], "category": [...]}.
    """
    columns, form = objects_columns(objects), box_format_of(objects) or form
    found = Objects([], [], [])
    for index, (box, category, name, crowd) in enumerate(zip(*columns, strict=True)):
        try:
            corners, clipped = _corners(box, frame.width, frame.height, form)
            label, flag = labels.index(category), _crowd(crowd)
        except BadRow as bad:
            found.bad.append((str(index if name is None else name)[:SHOWN_ID], str(bad)))
            continue
        if clipped:
            found.notices.append(CLIPPED)
        found.corners.append(frame.to_upright(corners))
        found.labels.append(label)
        found.crowd.append(flag)
    if len({(label, *corners) for label, corners in zip(found.labels, found.corners, strict=True)}) < len(found.labels):
        found.notices.append(REPEATED)
    return found


def objects_columns(objects: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """(boxes, categories, annotation ids, crowd flags) of a row's objects, equally long; None for an id or flag that is
    not given. Raises: BadRow.
    """
    if isinstance(objects, (list, tuple)):  # a list of objects, as JSON lines often hold them
        if not all(isinstance(one, Mapping) for one in objects):
            raise BadRow("objects is no list of {bbox, category}")
        objects = {key: [one.get(key) for one in objects] for key in ("bbox", "category", "id", "iscrowd")}
    if objects is None:
        raise BadRow("no objects")
    if not isinstance(objects, Mapping):
        raise BadRow(f"objects is {{bbox: [...], category: [...]}}, not {type(objects).__name__}")
    boxes, categories = _listed(objects, "bbox"), _listed(objects, "category")
    if boxes is None or categories is None:
        present = ", ".join(map(str, objects))[:200]
        raise BadRow(f"objects needs bbox and category, but has {present or 'nothing'}")
    if len(boxes) != len(categories):
        raise BadRow(f"objects has {len(boxes)} boxes and {len(categories)} categories")
    others = [_listed(objects, key) or [None] * len(boxes) for key in ("id", "iscrowd")]
    for key, values in zip(("id", "iscrowd"), others, strict=True):
        if len(values) != len(boxes):
            raise BadRow(f"objects has {len(boxes)} boxes and {len(values)} values of {key}")
    return boxes, categories, others[0], others[1]


def box_format_of(objects: Any) -> str:
    """What the format of the file says that its boxes are; "" if options.box_format decides. Raises: BadRow."""
    form = objects.get(BOX_FORMAT) if isinstance(objects, Mapping) else None
    if form is not None and form not in BOX_FORMATS:
        raise BadRow(f"{BOX_FORMAT} of objects is {form!r}, not one of {', '.join(BOX_FORMATS)}"[:300])
    return form or ""


def _listed(objects: Mapping[str, Any], key: str) -> list[Any] | None:
    """A column of the objects; None if it is absent. Raises: BadRow if it is not a list."""
    value: Any = objects.get(key)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is not None and not isinstance(value, (list, tuple)):
        raise BadRow(f"{key} of objects is a list with one value per box, not {type(value).__name__}")
    return None if value is None else list(value)


def _crowd(value: Any) -> int:
    if value is None:
        return 0
    if value in (0, 1, "0", "1"):
        return int(value)
    raise BadRow(f"iscrowd is {value!r}, not 0 or 1"[:200])


def box_numbers(box: Any) -> tuple[float, float, float, float]:
    """The four numbers of a box. Raises: BadRow if it has not four of them."""
    try:
        a, b, c, d = (to_number(value) for value in box)
    except (TypeError, ValueError, OverflowError) as error:
        four = isinstance(box, (list, tuple)) and len(box) == 4
        why = "holds a value that is not a number" if four else "is not [x, y, width, height]"
        raise BadRow(f"box {shorten(str(box))} {why}") from error
    return a, b, c, d


def as_xywh(
    box: tuple[float, float, float, float], form: str, width: float, height: float
) -> tuple[float, float, float, float]:
    """A box as options.box_format names it, in an image of width x height -> left, top, width, height in pixels."""
    a, b, c, d = box
    if form.startswith("normalized_"):
        a, b, c, d = a * width, b * height, c * width, d * height
    if form.endswith("xyxy"):
        return a, b, c - a, d - b
    return (a - c / 2, b - d / 2, c, d) if form.endswith("cxcywh") else (a, b, c, d)


def _corners(box: Any, width: float, height: float, form: str) -> tuple[list[float], bool]:
    """(corners inside the image, whether they were clipped to it).

    Raises: BadRow for a box without area, or that lies beyond the image.
    """
    numbers = box_numbers(box)
    shown = "box [" + ", ".join(f"{value:g}" for value in numbers) + "]"
    if not all(math.isfinite(value) for value in numbers):
        raise BadRow(f"{shown} holds a value that is not a number")
    x, y, wide, high = as_xywh(numbers, form, width, height)
    size = f"the image of {width:g} x {height:g} pixels"
    if wide <= 0 or high <= 0:
        raise BadRow(f"{shown} has no area")
    if form == "xywh" and (wide < 1 or high < 1) and all(0 <= value <= 1 for value in numbers):
        raise BadRow(f"{shown} is not larger than one pixel; for fractions of the image size, set options.box_format")
    if min(x, y) < -SLACK or x + wide > width + SLACK or y + high > height + SLACK:
        where = "outside" if x >= width or y >= height or x + wide <= 0 or y + high <= 0 else "partly outside"
        raise BadRow(f"{shown} lies {where} {size}")
    corners = [max(x, 0.0), max(y, 0.0), min(x + wide, float(width)), min(y + high, float(height))]
    if corners[2] - corners[0] <= 0 or corners[3] - corners[1] <= 0:
        raise BadRow(f"{shown} lies outside {size}")
    return corners, min(x, y) < -ROUNDING or x + wide > width + ROUNDING or y + high > height + ROUNDING


def mirror(corners: np.ndarray, width: int) -> np.ndarray:
    """Corners in the image mirrored left to right."""
    mirrored = corners.copy()
    mirrored[:, 0], mirrored[:, 2] = width - corners[:, 2], width - corners[:, 0]
    return mirrored


def crop(corners: np.ndarray, window: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(corners inside the window, in its own pixels, of every box; which of them are kept, bool [boxes]).

    Kept is a box of which at least a quarter lies inside, with at least one pixel each way.
    """
    left, top, right, bottom = window
    inside = corners.clip([left, top, left, top], [right, bottom, right, bottom])
    sides = inside[:, 2:] - inside[:, :2]
    whole = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    kept = (sides >= 1).all(axis=1) & (sides.prod(axis=1) >= LEFT_OVER * whole)
    return inside - [left, top, left, top], kept


def random_window(
    corners: np.ndarray, width: int, height: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A window (left, top, right, bottom) of 40 to 100 percent of the image that keeps at least one of its boxes.

    The whole image, if ten tries find none.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*CROP_AREA)
        shape = float(np.exp(rng.uniform(*np.log(CROP_SHAPE)))) * width / height
        wide, high = (area * shape) ** 0.5, (area / shape) ** 0.5
        if wide > width or high > height:
            continue
        left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
        window = (float(left), float(top), float(left + wide), float(top + high))
        if not len(corners) or crop(corners, window)[1].any():
            return window
    return 0.0, 0.0, float(width), float(height)


def center_boxes(corners: np.ndarray, width: float, height: float) -> np.ndarray:
    """[[left, top, right, bottom]] in pixels -> [[center x, center y, width, height]] as shares: float32 [boxes, 4]."""
    middles, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    return (np.concatenate([middles, sides], axis=1) / [width, height, width, height]).astype(np.float32)


def xywh(corners: Sequence[Sequence[float]]) -> list[list[float]]:
    """Corners -> left, top, width, height, rounded to hundredths of a pixel."""
    sides = ((a, b, c - a, d - b) for a, b, c, d in corners)
    return [[round(value, 2) + 0.0 for value in box] for box in sides]  # not -0.0
