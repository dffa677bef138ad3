"""From an image with boxes to what a detector takes: random augmentation that moves the boxes along, then the processor.

The same (seed, epoch, example id) gives the same pixels and boxes on any rank, in any process, in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from finetune.data.images import decode_image
from finetune.data.pixels import ValueRange
from finetune.tasks.vision.boxes import Objects, center_boxes, crop, mirror, random_window
from finetune.tasks.vision.levels import LevelPixels, find_steps

BRIGHTNESS = (0.7, 1.3)


class DetectionTransform:
    """(image, its objects, id) -> pixels and targets. Picklable for loader processes.

    processor: an image processor with one fixed output size (height, width). augment: "none", "flip" or "crop_flip".
    epoch: set by the loop; augmentation depends on it. value_range: see decode_image.
    """

    def __init__(
        self, processor: Any, size: tuple[int, int], augment: str, seed: int, value_range: ValueRange | None = None
    ) -> None:
        self.processor, self.size, self.augment, self.seed, self.epoch = processor, size, augment, seed, 0
        self.value_range = value_range

    def __call__(self, value: Any, objects: Objects, example_id: int) -> dict[str, Any]:
        """{"pixel_values": [3, H, W], "boxes": float32 [n, 4] centred, "class_labels": int64 [n]}. Pixels are levels where the
        processor allows it, otherwise float32.

        Crowds (COCO's iscrowd) are no targets. Raises: BadRow for an image that cannot be decoded.
        """
        image = decode_image(value, self.value_range)
        single = [index for index, crowd in enumerate(objects.crowd) if not crowd]
        corners = np.array([objects.corners[index] for index in single], np.float64).reshape(-1, 4)
        labels = np.array([objects.labels[index] for index in single], np.int64)
        window: tuple[float, ...] = (0.0, 0.0, float(image.width), float(image.height))
        if self.augment != "none":
            rng = np.random.Generator(np.random.Philox(key=[self.seed, (self.epoch << 40) + example_id]))
            if rng.random() < 0.5:
                image, corners = _mirrored(image), mirror(corners, image.width)
            if self.augment == "crop_flip":
                image = _brightened(image, rng.uniform(*BRIGHTNESS))
                window = random_window(corners, image.width, image.height, rng)
                corners, kept = crop(corners, window)
                corners, labels = corners[kept], labels[kept]
        boxes = center_boxes(corners, window[2] - window[0], window[3] - window[1])
        return {"pixel_values": self._process(image, window), "boxes": boxes, "class_labels": labels}

    def _process(self, image: Any, window: tuple[float, ...]) -> np.ndarray | LevelPixels:
        options: dict[str, Any] = {}
        whole = window == (0.0, 0.0, float(image.width), float(image.height))
        if not whole:
            height, width = self.size
            image, options = image.resize((width, height), resample=_bilinear(), box=window), {"do_resize": False}
        steps = find_steps(self.processor, self.size, 3)
        if steps is not None:
            return steps(image) if whole else steps.keep_size(image)
        pixels = self.processor(image, return_tensors="np", **options)["pixel_values"][0]
        return np.ascontiguousarray(pixels, np.float32)


def _mirrored(image: Any) -> Any:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _brightened(image: Any, factor: float) -> Any:
    return ImageEnhance.Brightness(image).enhance(factor)


def _bilinear() -> Any:
    return Image.Resampling.BILINEAR
