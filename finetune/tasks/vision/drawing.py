"""Detections drawn on the image that the model saw: ground truth in white, detections in the color of their class."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT = 17  # pixels: readable in a report's thumbnails too
EDGE = 480  # pixels that a picture has at least, so that its text can be read


def draw_detections(
    pixels: np.ndarray,
    processor: Any,
    size: Sequence[int],
    objects: Mapping[str, Any],
    detections: Mapping[str, Any],
    names: Sequence[str],
    min_score: float,
) -> Any:
    """A PIL image. pixels: float32 [3, H, W], as the processor made them. size: (width, height) that boxes refer to.

    objects, detections: {"boxes": [[x, y, w, h]], "labels", "scores"}; detections below the score `min_score` are left out.
    """
    image = restore_image(pixels, processor, size)
    pen = ImageDraw.Draw(image)
    scale = image.width / size[0], image.height / size[1]
    for box in objects["boxes"]:
        pen.rectangle(_scaled(box, scale), outline="white", width=1)
    for box, label, score in zip(detections["boxes"], detections["labels"], detections["scores"], strict=True):
        if score >= min_score:
            _draw_box(pen, _scaled(box, scale), f"{names[label]} {score:.2f}", _color(label, len(names)))
    return image


def draw_boxes(image: Any, boxes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """A PIL image in its own size, or enlarged to EDGE pixels, with boxes. boxes: [{"label", "score", "box": [x, y, w, h]}].

    names: of all classes, by which colors are chosen.
    """
    scale = max(1.0, EDGE / max(image.width, 1))
    size = (round(image.width * scale), max(1, round(image.height * scale)))
    image = image.convert("RGB") if scale == 1 else image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    pen, colors = ImageDraw.Draw(image), {name: _color(index, len(names)) for index, name in enumerate(names)}
    for one in sorted(boxes, key=lambda box: float(box["score"])):  # the clearest on top
        label = str(one["label"])
        color = colors.get(label, (255, 255, 255))
        _draw_box(pen, _scaled(one["box"], (scale, scale)), f"{label} {one['score']:.2f}", color)
    return image


def _draw_box(pen: Any, corners: tuple[float, float, float, float], text: str, color: tuple[int, int, int]) -> None:
    pen.rectangle(corners, outline=color, width=2)
    text = text.encode("latin-1", "replace").decode("latin-1")  # the letters of the font that Pillow brings
    font = ImageFont.load_default(size=FONT)
    pen.rectangle(pen.textbbox((corners[0] + 2, corners[1] + 1), text, font=font), fill=color)
    pen.text((corners[0] + 2, corners[1] + 1), text, fill="black", font=font)


class Pictures:
    """The folder of a run's pictures. A failure to draw or to save ends the drawing, and nothing else.

    problem: the first failure, "" while there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.problem = folder, ""

    def below(self, name: str) -> Pictures:
        """A folder inside of this one, which has failed where this one has."""
        inner = Pictures(self.folder / name)
        inner.problem = self.problem
        return inner

    def save(self, name: str, draw: Callable[[], Any]) -> dict[str, str]:
        """{"picture": path} once `draw` gave an image and it was saved; {} from the first failure on."""
        if self.problem:
            return {}
        try:
            return {"picture": str(save_picture(draw(), self.folder / name))}
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"
            return {}


def save_picture(image: Any, path: Path) -> Path:
    """Write a picture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".incomplete")
    image.save(beside, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    return beside.replace(path)


def restore_image(pixels: Any, processor: Any, size: Sequence[int]) -> Any:
    """The image behind the pixels [1 or 3, H, W], in the shape of the original, at least EDGE pixels wide: a PIL image.

    Raises: ValueError for other channels.
    """
    pixels = np.asarray(pixels, np.float32)
    if pixels.shape[0] not in (1, 3):
        raise ValueError(f"an image with {pixels.shape[0]} channels cannot be drawn")
    values = pixels.transpose(1, 2, 0)
    if getattr(processor, "do_normalize", False):
        values = values * np.asarray(processor.image_std) + np.asarray(processor.image_mean)
    colors = (values * 255).round().clip(0, 255).astype(np.uint8)
    image = Image.fromarray(colors if pixels.shape[0] == 3 else colors[:, :, 0]).convert("RGB")
    wide = max(EDGE, pixels.shape[2])
    return image.resize((wide, max(1, round(wide * size[1] / size[0]))), Image.Resampling.BILINEAR)


def draw_example(processor: Any, example: Mapping[str, Any]) -> Any:
    """The image of an encoded example as the model sees it, in the shape of the original where that is known."""
    pixels, size = example["pixel_values"], example.get("size")
    return restore_image(pixels, processor, (pixels.shape[2], pixels.shape[1]) if size is None else size)


def _scaled(box: Sequence[float], scale: tuple[float, float]) -> tuple[float, float, float, float]:
    x, y, wide, high = box
    return x * scale[0], y * scale[1], (x + wide) * scale[0], (y + high) * scale[1]


def _color(label: int, count: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label / max(count, 1), 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
