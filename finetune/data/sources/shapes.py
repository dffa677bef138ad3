"""Coloured shapes with their boxes, drawn on the fly: 800 training and 200 validation images of 96 x 96 pixels.

Each image is a function of its number alone. Three classes (circle, square, triangle) in any colour on noisy ground, one
to four an image, so that a detector can be trained from random weights in a minute.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

CLASSES = ("circle", "square", "triangle")
EDGE = 96  # pixels
SIZES = {"train": 800, "validation": 200}
SMALLEST, LARGEST = 16, 44  # pixels
MOST = 4  # objects an image
OVERLAP = 0.2  # share of the smaller box that may be covered


def shape_rows(split: str) -> Iterator[dict[str, Any]]:
    """{"image": PNG bytes, "objects": {"bbox": [[x, y, w, h]], "category": [...], "id": [...], "iscrowd": [...]}}."""
    first = 0 if split == "train" else SIZES["train"]
    for number in range(first, first + SIZES[split]):
        yield draw_shapes(number)


def draw_shapes(number: int) -> dict[str, Any]:
    """Image `number` of the endless set."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.Generator(np.random.Philox(key=[96, number]))
    ground = rng.integers(0, 90, 3) + rng.integers(0, 24, (EDGE, EDGE, 3))
    image = Image.fromarray(ground.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    objects: dict[str, list[Any]] = {"bbox": [], "category": [], "id": [], "iscrowd": []}
    for index in range(int(rng.integers(1, MOST + 1))):
        box = _free_box(objects["bbox"], rng)
        if box is None:
            continue
        kind = int(rng.integers(len(CLASSES)))
        colour = tuple(int(value) for value in rng.integers(110, 256, 3))
        _draw(pen, CLASSES[kind], box, colour)
        objects["bbox"].append([float(value) for value in box])
        objects["category"].append(CLASSES[kind])
        objects["id"].append(number * MOST + index)
        objects["iscrowd"].append(0)
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"image": file.getvalue(), "objects": objects}


def _free_box(taken: list[list[float]], rng: np.random.Generator) -> list[int] | None:
    """[x, y, edge, edge] that covers little of those drawn before; None where no place is found."""
    for _ in range(20):
        edge = int(rng.integers(SMALLEST, LARGEST + 1))
        x, y = (int(value) for value in rng.integers(0, EDGE - edge + 1, 2))
        if all(_covered([x, y, edge, edge], other) <= OVERLAP for other in taken):
            return [x, y, edge, edge]
    return None


def _covered(box: list[int], other: list[float]) -> float:
    wide = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    high = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(wide, 0) * max(high, 0) / min(box[2] * box[3], other[2] * other[3])


def _draw(pen: Any, kind: str, box: list[int], colour: tuple[int, ...]) -> None:
    left, top, right, bottom = box[0], box[1], box[0] + box[2] - 1, box[1] + box[3] - 1
    if kind == "circle":
        pen.ellipse((left, top, right, bottom), fill=colour)
    elif kind == "square":
        pen.rectangle((left, top, right, bottom), fill=colour)
    else:
        pen.polygon([((left + right) / 2, top), (left, bottom), (right, bottom)], fill=colour)
