"""From an image to what a vision model takes: random augmentation in training, then the model's own image processor.

The same (seed, epoch, example id) gives the same pixels on any rank, in any process, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from finetune.data.bad_rows import BadRow
from finetune.data.images import decode_image
from finetune.data.pixels import ValueRange
from finetune.data.prepare.encode import LazyExamples
from finetune.errors import TrainingFailed
from finetune.tasks.vision.levels import WITHOUT_RESIZING, LevelPixels, find_steps

CROP_AREA = (0.35, 1.0)  # share of the image that a random crop keeps
CHANGES, ERASED = 2, 0.25  # of "strong": changes per image, and the share of images of which a patch is erased
CROP_SHAPE = (3 / 4, 4 / 3)  # width to height of it


class ImageExamples(LazyExamples):
    """Images of one split; `function.pixels` makes their pixels. epoch: set by the loop; augmentation depends on it."""

    function: Any

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises: TrainingFailed for an image that could be decoded before training, and can no longer."""
        try:
            return super().__getitem__(index)
        except BadRow as error:
            raise TrainingFailed(
                f"an image can no longer be read since it was checked: {error}",
                where=self.table.place(int(self.ids[index])),
                remedy="Bring the file back.",
            ) from error

    @property
    def epoch(self) -> int:
        """Passes over the data that are complete."""
        return self.function.pixels.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.function.pixels.epoch = epoch


class ImageTransform:
    """An image, however the data holds it -> its pixels for the model. Picklable for loader processes.

    processor: an image processor with one fixed output size. augment: "none", "flip", "crop_flip" or "strong".
    epoch: set by the loop; augmentation depends on it. value_range: see decode_image.
    """

    def __init__(
        self,
        processor: Any,
        size: tuple[int, int],
        channels: int,
        augment: str,
        seed: int,
        value_range: ValueRange | None = None,
    ) -> None:
        self.processor, self.size, self.channels, self.value_range = processor, size, channels, value_range
        self.augment, self.seed, self.epoch = augment, seed, 0

    def __call__(self, value: Any, example_id: int) -> np.ndarray | LevelPixels:
        """Levels where the processor allows it, otherwise float32 [channels, height, width].

        Raises: BadRow for an image that cannot be decoded.
        """
        image = decode_image(value, self.value_range)
        if self.channels == 1:
            image = image.convert("L")
        if self.augment == "none":
            return self._process(image, None)
        box, rng = None, np.random.Generator(np.random.Philox(key=[self.seed, (self.epoch << 40) + example_id]))
        if rng.random() < 0.5:
            image = _flip(image)
        if self.augment in ("crop_flip", "strong"):
            box = crop_box(image.width, image.height, rng)
        if self.augment == "strong":
            for _ in range(CHANGES):
                image = change(image, rng)
        pixels = self._process(image, box)
        if self.augment == "strong" and rng.random() < ERASED:
            pixels = np.asarray(pixels)
            erase(pixels, rng)
        return pixels

    def _process(self, image: Image.Image, box: tuple[float, float, float, float] | None) -> np.ndarray | LevelPixels:
        steps = find_steps(self.processor, self.size, self.channels)
        options: dict[str, Any] = {}
        if box is not None:
            height, width = self.size
            image = image.resize((width, height), resample=_bilinear(), box=box)
            options = WITHOUT_RESIZING
        if steps is not None:
            return steps(image) if box is None else steps.keep_size(image)
        pixels = self.processor(image, return_tensors="np", **options)["pixel_values"][0]
        return np.ascontiguousarray(pixels, np.float32)


def crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A random box (left, top, right, bottom) inside width x height, as for Inception (Szegedy et al. 2014, section 6)."""
    for _ in range(10):
        area = width * height * rng.uniform(*CROP_AREA)
        shape = float(np.exp(rng.uniform(np.log(CROP_SHAPE[0]), np.log(CROP_SHAPE[1]))))
        wide, high = (area * shape) ** 0.5, (area / shape) ** 0.5
        if wide <= width and high <= height:
            left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
            return left, top, left + wide, top + high
    return 0.0, 0.0, float(width), float(height)


def one_image(example: Mapping[str, Any]) -> int:
    """The cost of an example: all images have the same size."""
    return 1


def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One of RandAugment's changes (Cubuk et al. 2019), of mild strength, drawn at random."""
    kind, strength = int(rng.integers(7)), float(rng.uniform(-1, 1))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, ImageEnhance.Sharpness)
    if kind < len(enhancers):
        return enhancers[kind](image).enhance(1 + 0.4 * strength)
    if kind == 4:
        return image.rotate(15 * strength, resample=Image.Resampling.BILINEAR, fillcolor=_gray(image))
    if kind == 5:
        return ImageOps.autocontrast(image) if strength > 0 else ImageOps.equalize(image)
    shear = (1, 0.2 * strength, -0.1 * strength * image.height, 0, 1, 0)
    how: Any = {"resample": Image.Resampling.BILINEAR, "fillcolor": _gray(image)}
    return image.transform(image.size, Image.Transform.AFFINE, shear, **how)


def erase(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """A random box of 2 to 20 percent of [K, H, W] becomes noise, in place (Zhong et al., "Random Erasing", 2017)."""
    height, width = pixels.shape[-2:]
    area, shape = rng.uniform(0.02, 0.2) * height * width, rng.uniform(0.4, 2.5)
    high, wide = min(height, max(1, round((area * shape) ** 0.5))), min(width, max(1, round((area / shape) ** 0.5)))
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    pixels[:, top : top + high, left : left + wide] = rng.standard_normal((len(pixels), high, wide))


def _gray(image: Image.Image) -> Any:
    return 128 if image.mode == "L" else (128, 128, 128)


def _flip(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _bilinear() -> Any:
    return Image.Resampling.BILINEAR
