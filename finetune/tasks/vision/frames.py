"""The pixels on which the boxes of an image were drawn, and the way from them to the upright image.

An image may have been resized, or turned upright by its EXIF orientation, after its boxes were drawn. The row's width and
height say what the boxes refer to; without them it is the upright image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.images import UPRIGHT, ImageHeader, Picture

TURNED = "width and height are those before the EXIF rotation; the boxes are rotated with the image"
SCALED = "the size of the image differs from width and height, in the same ratio; the boxes are scaled"
UNDECIDED = (
    "EXIF data rotates or mirrors the image, and width and height do not say whether its boxes were drawn before; "
    "they are taken as drawn after"
)
MAX_SIDE = 1_000_000  # pixels; more is no size
ROUNDED = 1.0  # pixels by which a resized image may differ from the exact ratio


@dataclass(frozen=True)
class Frame:
    """width, height: of the pixels on which the boxes were drawn. scale: (x, y) factors from them to the file's pixels.
    orientation: EXIF orientation by which the boxes must be turned, 1 for none. notices: what to report.
    """

    width: float
    height: float
    scale: tuple[float, float] = (1.0, 1.0)
    orientation: int = 1
    notices: tuple[str, ...] = ()

    def to_upright(self, corners: Sequence[float]) -> list[float]:
        """[left, top, right, bottom] in this frame -> in the pixels of the upright image."""
        if self.scale == (1.0, 1.0) and self.orientation not in UPRIGHT:
            return list(corners)
        sx, sy = self.scale
        width, height = self.width * sx, self.height * sy
        points = [_turn(corners[i] * sx, corners[i + 1] * sy, self.orientation, width, height) for i in (0, 2)]
        (ax, ay), (bx, by) = points
        return [min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)]


def find_frame(row: Mapping[str, Any], picture: Picture | ImageHeader) -> Frame:
    """The frame of an image's boxes, from the row's width and height and the image's sizes before and after rotation.

    Raises: BadRow if width and height contradict the image.
    """
    upright, stored = picture.size, picture.stored_size
    rotated = picture.orientation in UPRIGHT
    declared = declared_size(row)
    undecided = (UNDECIDED,) if rotated and (declared is None or upright == stored) else ()
    if declared is None or declared == upright:
        return Frame(*upright, notices=undecided)
    if declared == stored:
        return Frame(*stored, orientation=picture.orientation, notices=(TURNED,))
    for size, orientation in ((upright, 1), (stored, picture.orientation)):
        if _same_ratio(declared, size):
            scale = size[0] / declared[0], size[1] / declared[1]
            return Frame(*declared, scale, orientation, (SCALED, *undecided))
    before = f" ({stored[0]} x {stored[1]} before its EXIF rotation)" if stored != upright else ""
    raise BadRow(
        f"width and height are {declared[0]} x {declared[1]} pixels, but the image has {upright[0]} x {upright[1]}{before}, "
        "which is a different ratio: its boxes cannot be placed"
    )


def declared_size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) as the row's columns of these names say; None without them, or if they are 0.

    Raises: BadRow for values that are not whole numbers.
    """
    values: tuple[Any, Any] = row.get("width"), row.get("height")
    if not values[0] or not values[1]:
        return None
    sizes = []
    for name, value in zip(("width", "height"), values, strict=True):
        number = not isinstance(value, bool) and isinstance(value, (int, float))
        if not number or not 0 < value <= MAX_SIDE or value % 1:
            raise BadRow(f"{name} is {value!r}, not the image's {name} in pixels"[:200])
        sizes.append(int(value))
    return sizes[0], sizes[1]


def _same_ratio(declared: tuple[int, int], size: tuple[int, int]) -> bool:
    width, height = declared[0] * size[1] / declared[1], declared[1] * size[0] / declared[0]
    return abs(width - size[0]) <= ROUNDED or abs(height - size[1]) <= ROUNDED


def _turn(x: float, y: float, orientation: int, width: float, height: float) -> tuple[float, float]:
    """A point of the stored image of width x height pixels, in the upright image."""
    return {
        2: (width - x, y),
        3: (width - x, height - y),
        4: (x, height - y),
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }.get(orientation, (x, y))
