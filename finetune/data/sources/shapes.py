"""Drawn images of colored shapes with bounding boxes: 800 training and 200 validation images of 96 x 96 pixels.

Each image is a function of its number only. It contains one to four objects of three classes (circle, square, triangle)
in random colors on a noisy background, so that a detector can be trained from random weights in a minute.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

CLASSES = ("circle", "square", "triangle")
EDGE = 96  # width and height of an image in pixels
SIZES = {"train": 800, "validation": 200}
MIN_SIZE, MAX_SIZE = 16, 44  # edge of a box in pixels
MAX_OBJECTS = 4  # per image
MAX_OVERLAP = 0.2  # fraction of the smaller box that another one may cover


def shape_rows(split: str) -> Iterator[dict[str, Any]]:
    """Rows of a split: {"image": PNG bytes, "objects": {"bbox": [[x, y, w, h]], "category", "id", "iscrowd"}}."""
    first = 0 if split == "train" else SIZES["train"]
    for number in range(first, first + SIZES[split]):
        yield draw_shapes(number)


def draw_shapes(number: int) -> dict[str, Any]:
    """The row of image `number`, which may be any number >= 0."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.Generator(np.random.Philox(key=[96, number]))
    background = rng.integers(0, 90, 3) + rng.integers(0, 24, (EDGE, EDGE, 3))
    image = Image.fromarray(background.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    objects: dict[str, list[Any]] = {"bbox": [], "category": [], "id": [], "iscrowd": []}
    for index in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        box = _free_box(objects["bbox"], rng)
        if box is None:
            continue
        shape = int(rng.integers(len(CLASSES)))
        color = tuple(int(value) for value in rng.integers(110, 256, 3))
        _draw(pen, CLASSES[shape], box, color)
        objects["bbox"].append([float(value) for value in box])
        objects["category"].append(CLASSES[shape])
        objects["id"].append(number * MAX_OBJECTS + index)
        objects["iscrowd"].append(0)
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"image": file.getvalue(), "objects": objects}


def _free_box(taken: list[list[float]], rng: np.random.Generator) -> list[int] | None:
    """A random box [x, y, edge, edge] that overlaps the taken ones little; None after 20 unsuccessful attempts."""
    for _ in range(20):
        edge = int(rng.integers(MIN_SIZE, MAX_SIZE + 1))
        x, y = (int(value) for value in rng.integers(0, EDGE - edge + 1, 2))
        if all(_covered([x, y, edge, edge], other) <= MAX_OVERLAP for other in taken):
            return [x, y, edge, edge]
    return None


def _covered(box: list[int], other: list[float]) -> float:
    """Intersection of two boxes divided by the area of the smaller one."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(width, 0) * max(height, 0) / min(box[2] * box[3], other[2] * other[3])


def _draw(pen: Any, shape: str, box: list[int], color: tuple[int, ...]) -> None:
    left, top, right, bottom = box[0], box[1], box[0] + box[2] - 1, box[1] + box[3] - 1
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=color)
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=color)
    else:
        pen.polygon([((left + right) / 2, top), (left, bottom), (right, bottom)], fill=color)
