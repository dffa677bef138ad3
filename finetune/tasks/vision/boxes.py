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
from finetune.data.labels import Labels

SLACK = 1.5  # pixels that a box may reach beyond the image: annotation tools round
LEFT_OVER = 0.25  # share of a box that a crop must keep, or the box is dropped
CROP_AREA = (0.4, 1.0)
CROP_SHAPE = (0.6, 1.7)


@dataclass(frozen=True)
class Objects:
    """What lies in one image. corners: [[left, top, right, bottom], ...]. bad: (annotation id, why) of those left out."""

    corners: list[list[float]]
    labels: list[int]
    crowd: list[int]
    bad: list[tuple[str, str]] = field(default_factory=list)


def check_objects(objects: Any, labels: Labels, width: int, height: int) -> Objects:
    """The objects of an image of width x height pixels; those that cannot be used are in `bad`, with the reason.

    A box that reaches at most 1.5 pixels beyond the image is clipped at its edge.
    Raises: BadRow if `objects` has not the form {"bbox": [[x, y, w, h], ...], "category": [...]}.
    """
    boxes, categories, ids, crowds = _columns(objects)
    found = Objects([], [], [])
    for index, (box, category) in enumerate(zip(boxes, categories, strict=True)):
        name = str(ids[index]) if index < len(ids) else str(index)
        try:
            corners = _corners(box, width, height)
            label = labels.index(category)
        except BadRow as bad:
            found.bad.append((name, str(bad)))
            continue
        found.corners.append(corners)
        found.labels.append(label)
        found.crowd.append(int(bool(crowds[index])) if index < len(crowds) else 0)
    return found


def _columns(objects: Any) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any], Sequence[Any]]:
    if isinstance(objects, (list, tuple)):  # a list of objects, as JSON lines often hold them
        if not all(isinstance(one, Mapping) for one in objects):
            raise BadRow("objects is no list of {bbox, category}")
        objects = {key: [one.get(key) for one in objects] for key in ("bbox", "category", "id", "iscrowd")}
    if objects is None:
        raise BadRow("no objects")
    if not isinstance(objects, Mapping):
        raise BadRow(f"objects is {{bbox: [...], category: [...]}}, not {type(objects).__name__}")
    boxes, categories = objects.get("bbox"), objects.get("category")
    if boxes is None or categories is None:
        raise BadRow(f"objects needs bbox and category, but has {', '.join(map(str, objects)) or 'nothing'}")
    if len(boxes) != len(categories):
        raise BadRow(f"objects has {len(boxes)} boxes and {len(categories)} categories")
    return boxes, categories, objects.get("id") or (), objects.get("iscrowd") or ()


def _corners(box: Any, width: int, height: int) -> list[float]:
    """Corners inside the image. Raises: BadRow for a box without area, or that lies beyond the image."""
    try:
        x, y, wide, high = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise BadRow(f"box {box} is not [x, y, width, height]") from error
    shown = f"box [{x:g}, {y:g}, {wide:g}, {high:g}]"
    if not all(math.isfinite(value) for value in (x, y, wide, high)):
        raise BadRow(f"{shown} holds a value that is not a number")
    if wide <= 0 or high <= 0:
        raise BadRow(f"{shown} has no area")
    if min(x, y) < -SLACK or x + wide > width + SLACK or y + high > height + SLACK:
        where = "outside" if x >= width or y >= height or x + wide <= 0 or y + high <= 0 else "partly outside"
        raise BadRow(f"{shown} lies {where} the image of {width} x {height} pixels")
    corners = [max(x, 0.0), max(y, 0.0), min(x + wide, float(width)), min(y + high, float(height))]
    if corners[2] - corners[0] <= 0 or corners[3] - corners[1] <= 0:
        raise BadRow(f"{shown} lies outside the image of {width} x {height} pixels")
    return corners


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
    return [[round(a, 2), round(b, 2), round(c - a, 2), round(d - b, 2)] for a, b, c, d in corners]
