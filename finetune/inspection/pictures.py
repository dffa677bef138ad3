"""An image as the model sees it, after augmentation, with its boxes: as numbers, and as a small PNG in a data URI."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from finetune.tasks.artifacts import TaskArtifacts

EDGE = 320  # pixels of the longer side of a thumbnail, at most
SMALL = 240  # at least


@dataclass(frozen=True)
class Box:
    """label: name of the class. corners: left, top, right, bottom in pixels of the model's input."""

    label: str
    corners: tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """width, height: of the model's input. labels: of the image, or of its boxes. left_out: boxes that a random crop has
    left outside. mixed: share of its own label, and the partner's label, under mixup or CutMix; "" without.
    augment: the random augmentation of epoch 0, "none" outside train. uri: the thumbnail.
    """

    width: int
    height: int
    channels: int
    labels: tuple[str, ...]
    boxes: tuple[Box, ...]
    left_out: int
    mixed: str
    augment: str
    uri: str

    @property
    def summary(self) -> str:
        """Size, colors and augmentation, for people."""
        colors = "gray" if self.channels == 1 else f"{self.channels} channels"
        how = "not augmented" if self.augment == "none" else f"augmented ({self.augment}) as in epoch 0"
        boxes = "1 box" if self.left_out == 1 else f"{self.left_out} boxes"
        cut = f", {boxes} outside the crop" if self.left_out else ""
        return f"{self.width} x {self.height} pixels, {colors}, {how}{cut}"


def make_picture(artifacts: TaskArtifacts, example: Mapping[str, Any], *, augment: str) -> Picture:
    """From the pixels of an encoded example, float32 [channels, height, width]. augment: as the options name it."""
    pixels = np.asarray(example["pixel_values"])
    channels, height, width = pixels.shape
    names = artifacts.labels
    boxes = tuple(
        Box(
            names[int(label)],
            ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height),
        )
        for (x, y, w, h), label in zip(
            np.asarray(example.get("boxes", ())).tolist(), example.get("class_labels", ()), strict=True
        )
    )
    objects = example.get("objects", {})
    left_out = sum(not crowd for crowd in objects.get("crowd", ())) - len(boxes)
    labels = tuple(box.label for box in boxes) if "boxes" in example else _own_label(names, example)
    mixed = ""
    if "partner" in example:
        share = float(example["share"])
        mixed = f"{share:.0%} {names[int(example['label'])]}, {1 - share:.0%} {names[int(example['partner'])]}"
    image = _draw(restore(pixels, artifacts.processor), boxes, names)
    return Picture(width, height, channels, labels, boxes, left_out, mixed, augment, _uri(image))


def _own_label(names: list[str], example: Mapping[str, Any]) -> tuple[str, ...]:
    return (names[int(example["label"])],) if "label" in example else ()


def restore(pixels: np.ndarray, processor: Any) -> Image.Image:
    """The image behind normalized pixels [channels, height, width]: RGB, of the same size."""
    values = np.asarray(pixels, np.float64).transpose(1, 2, 0)
    if getattr(processor, "do_normalize", False):
        values = values * np.asarray(processor.image_std) + np.asarray(processor.image_mean)
    elif not getattr(processor, "do_rescale", True):
        values = values / 255
    levels = (values * 255).round().clip(0, 255).astype(np.uint8)
    if levels.shape[2] == 1:
        levels = np.repeat(levels, 3, axis=2)
    return Image.fromarray(levels[:, :, :3])


def _draw(image: Image.Image, boxes: tuple[Box, ...], names: list[str]) -> Image.Image:
    """A thumbnail with the boxes in the colors of their classes."""
    longer = max(image.size)
    scale = EDGE / longer if longer > EDGE else max(1, SMALL // longer)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    for box in boxes:
        color = _color(names.index(box.label), len(names))
        left, top, right, bottom = (value * scale for value in box.corners)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=2)
    return image


def _color(label: int, count: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label / max(count, 1), 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
