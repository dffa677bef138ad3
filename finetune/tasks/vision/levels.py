"""Pixels as bytes, and the value that each byte has for the model: a fourth of the memory on the way to the device.

A processor that resizes, rescales and normalizes gives each channel at most 256 values. They are read from the processor
itself, so that looking them up gives its own numbers, bit for bit, and sooner than computing them for each pixel; a
processor that does anything else is found out on probes, and used as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

LEVELS = 256
WITHOUT_RESIZING = {"do_resize": False, "do_center_crop": False}
BYTES_ONLY = {"do_rescale": False, "do_normalize": False}
PROBES = ((1.0, 1.0), (1.14, 1.14), (0.6, 0.6), (2.3, 0.9), (0.7, 1.9))  # width and height, of those of the output


@dataclass(frozen=True, eq=False)
class LevelPixels:
    """One image. levels: uint8 [H, W, K]. table: float32 [K, 256], the value of each level in each channel.

    As an array it is what a processor returns: float32 [K, H, W].
    """

    levels: np.ndarray
    table: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, H, W)."""
        height, width, channels = self.levels.shape
        return channels, height, width

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = np.empty(self.shape, np.float32)
        for channel, row in enumerate(self.table):
            np.take(row, self.levels[:, :, channel], out=values[channel], mode="clip")
        return values if dtype is None else values.astype(dtype, copy=False)


@dataclass(frozen=True)
class LevelSteps:
    """What a processor does, in two steps. shape: an image -> uint8 [H, W, K]; table: as in LevelPixels."""

    shape: Callable[[Image.Image], np.ndarray]
    table: np.ndarray

    def __call__(self, image: Image.Image) -> LevelPixels:
        """What the processor makes of an image."""
        return LevelPixels(self.shape(image), self.table)

    def keep_size(self, image: Image.Image) -> LevelPixels:
        """The same of an image that has the size of the output."""
        return LevelPixels(_levels_of(image), self.table)


@lru_cache(maxsize=16)
def find_steps(processor: Any, size: tuple[int, int], channels: int) -> LevelSteps | None:
    """The steps whose result equals the processor's in every bit; None where there are none. Found once per process.

    size: (height, width) of the output.
    """
    if channels not in (1, 3):
        return None
    try:
        table = _read_table(processor, channels)
        probes = [(image, _processed(processor, image)) for image in _make_probes(size, channels)]
        kept = _processed(processor, probes[0][0], **WITHOUT_RESIZING)
    except Exception:  # a processor that does not know the options
        return None
    height, width = size
    by_pillow: list[Callable[[Image.Image], np.ndarray]] = []
    if getattr(processor, "resample", None) is not None:
        how: Any = int(processor.resample)
        by_pillow.append(lambda image: _levels_of(image.resize((width, height), resample=how)))
    for shape in (*by_pillow, lambda image: _shaped_by(processor, image)):
        steps = LevelSteps(shape, table)
        agree = all(_agree(steps, image, wanted) for image, wanted in probes)
        if agree and _agree(steps.keep_size, probes[0][0], kept):
            return steps
    return None


def stack_pixels(images: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Inputs of a batch: {"pixel_values": float32 [B, K, H, W]}; where every image has levels of one table, uint8 with
    the channels innermost in memory, and {"pixel_table": float32 [K, 256]} (see `pixel_values`).
    """
    first = images[0]
    if all(isinstance(image, LevelPixels) and _same(image.table, first.table) for image in images):
        levels = torch.from_numpy(np.stack([image.levels for image in images]))
        return {"pixel_values": levels.permute(0, 3, 1, 2), "pixel_table": torch.from_numpy(first.table)}
    return {"pixel_values": torch.from_numpy(np.stack([np.asarray(image) for image in images]))}


def pixel_values(inputs: dict[str, Any], dtype: torch.dtype, *, innermost: bool = True) -> dict[str, Any]:
    """Inputs of `stack_pixels`, or any with "pixel_values" -> those of a model, on the same device: pixels of `dtype`.

    innermost: on a GPU, the channels lie innermost in memory (torch.channels_last), as its convolutions take them fastest.
    """
    inputs = dict(inputs)
    pixels, table = inputs["pixel_values"], inputs.pop("pixel_table", None)
    innermost = innermost and _is_on_gpu(pixels) and pixels.dim() == 4
    layout = torch.channels_last if innermost else torch.contiguous_format
    pixels = pixels.contiguous(memory_format=layout)
    inputs["pixel_values"] = pixels.to(dtype) if table is None else look_up(pixels, table.to(dtype))
    return inputs


def _is_on_gpu(pixels: torch.Tensor) -> bool:
    return pixels.is_cuda


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or np.array_equal(one, other)


def look_up(levels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """uint8 [B, K, H, W], [K, 256] -> values [B, K, H, W] in the layout of `levels`, which is dense."""
    first = torch.arange(0, table.numel(), LEVELS, dtype=torch.int32, device=levels.device)
    places = levels.to(torch.int32) + first[:, None, None]
    flat = places.permute(0, 2, 3, 1) if levels.is_contiguous(memory_format=torch.channels_last) else places
    if not flat.is_contiguous():  # of one channel or one row, both layouts may be the same
        flat = places
    values = table.reshape(-1).index_select(0, flat.reshape(-1)).view(flat.shape)
    return values if flat is places else values.permute(0, 3, 1, 2)


def _read_table(processor: Any, channels: int) -> np.ndarray:
    """float32 [K, 256]: what the processor makes of each level."""
    ramp = np.arange(LEVELS, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(ramp if channels == 1 else np.repeat(ramp[:, :, None], channels, axis=2))
    values = _processed(processor, image, **WITHOUT_RESIZING)
    return np.ascontiguousarray(values.reshape(channels, LEVELS))


def _make_probes(size: tuple[int, int], channels: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = [(max(1, round(size[0] * high)), max(1, round(size[1] * wide))) for wide, high in PROBES]
    deep = () if channels == 1 else (channels,)
    return [Image.fromarray(rng.integers(0, LEVELS, (*shape, *deep), np.uint8)) for shape in shapes]


def _agree(make: Callable[[Image.Image], LevelPixels], image: Image.Image, wanted: np.ndarray) -> bool:
    try:
        return np.array_equal(np.asarray(make(image)), wanted)
    except Exception:  # not bytes, or not of this shape
        return False


def _processed(processor: Any, image: Image.Image, **options: Any) -> np.ndarray:
    return np.asarray(processor(image, return_tensors="np", **options)["pixel_values"][0], np.float32)


def _shaped_by(processor: Any, image: Image.Image) -> np.ndarray:
    pixels = processor(image, return_tensors="np", **BYTES_ONLY)["pixel_values"][0]
    if pixels.dtype != np.uint8:
        raise TypeError(f"pixels are {pixels.dtype}")
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _levels_of(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, K]."""
    levels = np.asarray(image)
    return levels[:, :, None] if levels.ndim == 2 else levels
