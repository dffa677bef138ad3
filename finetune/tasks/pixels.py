"""From an image to what a vision model takes: chance changes while training, then the model's own image processor.

The same (seed, epoch, example id) gives the same pixels on any rank, in any process, in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.data.encode import LazyExamples
from finetune.data.images import decode_image

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CROP_AREA = (0.35, 1.0)  # share of the image that a chance crop keeps
CROP_SHAPE = (3 / 4, 4 / 3)  # width to height of it


class ImageExamples(LazyExamples):
    """Images of one split; `function.pixels` makes their pixels. epoch: the loop sets it, and chance changes follow it."""

    function: Any

    @property
    def epoch(self) -> int:
        """Passes over the data that are complete."""
        return self.function.pixels.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.function.pixels.epoch = epoch


class Pixels:
    """An image, however the data holds it -> float32 [channels, height, width]. Picklable for loader processes.

    processor: an image processor with one fixed output size. augment: "none", "flip" or "crop_flip". epoch: set by whoever
    walks the epochs, and part of the chance.
    """

    def __init__(self, processor: Any, size: tuple[int, int], channels: int, augment: str, seed: int) -> None:
        self.processor, self.size, self.channels = processor, size, channels
        self.augment, self.seed, self.epoch = augment, seed, 0

    def __call__(self, value: Any, example_id: int) -> np.ndarray:
        """Raises: BadRow for an image that cannot be decoded."""
        import numpy as np

        image = decode_image(value)
        if self.channels == 1:
            image = image.convert("L")
        box = None
        if self.augment != "none":
            chance = np.random.Generator(np.random.Philox(key=[self.seed, (self.epoch << 40) + example_id]))
            if chance.random() < 0.5:
                image = _flip(image)
            if self.augment == "crop_flip":
                box = crop_box(image.width, image.height, chance)
        return self._process(image, box)

    def _process(self, image: Image.Image, box: tuple[float, float, float, float] | None) -> np.ndarray:
        import numpy as np

        options: dict[str, Any] = {}
        if box is not None:
            height, width = self.size
            image = image.resize((width, height), resample=_bilinear(), box=box)
            options = {"do_resize": False, "do_center_crop": False}
        pixels = self.processor(image, return_tensors="np", **options)["pixel_values"][0]
        return np.ascontiguousarray(pixels, np.float32)


def crop_box(width: int, height: int, chance: np.random.Generator) -> tuple[float, float, float, float]:
    """A chance box (left, top, right, bottom) inside width x height, as for Inception (Szegedy et al. 2014, section 6)."""
    import numpy as np

    for _ in range(10):
        area = width * height * chance.uniform(*CROP_AREA)
        shape = float(np.exp(chance.uniform(np.log(CROP_SHAPE[0]), np.log(CROP_SHAPE[1]))))
        wide, high = (area * shape) ** 0.5, (area / shape) ** 0.5
        if wide <= width and high <= height:
            left, top = chance.uniform(0, width - wide), chance.uniform(0, height - high)
            return left, top, left + wide, top + high
    return 0.0, 0.0, float(width), float(height)


def _flip(image: Image.Image) -> Image.Image:
    from PIL import Image

    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _bilinear() -> Any:
    from PIL import Image

    return Image.Resampling.BILINEAR
