"""Detections drawn on the image that the model saw: what is there in white, what was found in its class's colour."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

EDGE = 480  # pixels that a picture has at least, so that its words can be read


def draw_detections(
    pixels: np.ndarray,
    processor: Any,
    size: Sequence[int],
    objects: Mapping[str, Any],
    detections: Mapping[str, Any],
    names: Sequence[str],
    clear: float,
) -> Any:
    """A PIL image. pixels: float32 [3, H, W], as the processor made them. size: (width, height) that boxes refer to.

    objects, detections: {"boxes": [[x, y, w, h]], "labels", "scores"}; detections below the score `clear` are left out.
    """
    from PIL import ImageDraw

    image = _restored(pixels, processor, size)
    pen = ImageDraw.Draw(image)
    scale = image.width / size[0], image.height / size[1]
    for box in objects["boxes"]:
        pen.rectangle(_scaled(box, scale), outline="white", width=1)
    for box, label, score in zip(detections["boxes"], detections["labels"], detections["scores"], strict=True):
        if score < clear:
            continue
        corners, colour = _scaled(box, scale), _colour(label, len(names))
        pen.rectangle(corners, outline=colour, width=2)
        words = f"{names[label]} {score:.2f}"
        pen.rectangle(pen.textbbox((corners[0] + 2, corners[1] + 1), words), fill=colour)
        pen.text((corners[0] + 2, corners[1] + 1), words, fill="black")
    return image


def save_picture(image: Any, path: Path) -> Path:
    """Write a picture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".incomplete")
    image.save(beside, "PNG")
    return beside.replace(path)


def _restored(pixels: np.ndarray, processor: Any, size: Sequence[int]) -> Any:
    """The image behind the pixels, in the shape of the original, at least EDGE pixels wide."""
    import numpy as np
    from PIL import Image

    values = pixels.transpose(1, 2, 0)
    if getattr(processor, "do_normalize", False):
        values = values * np.asarray(processor.image_std) + np.asarray(processor.image_mean)
    image = Image.fromarray((values * 255).round().clip(0, 255).astype(np.uint8))
    wide = max(EDGE, pixels.shape[2])
    return image.resize((wide, max(1, round(wide * size[1] / size[0]))), Image.Resampling.BILINEAR)


def _scaled(box: Sequence[float], scale: tuple[float, float]) -> tuple[float, float, float, float]:
    x, y, wide, high = box
    return x * scale[0], y * scale[1], (x + wide) * scale[0], (y + high) * scale[1]


def _colour(label: int, count: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label / max(count, 1), 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
