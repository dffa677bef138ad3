"""Levels and their table give what the processor gives, bit for bit, or the processor itself is used."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from finetune.tasks.vision.drawing import draw_detections, draw_example
from finetune.tasks.vision.levels import LevelPixels, find_steps, look_up, pixel_values, stack_pixels
from finetune.tasks.vision.transforms import ImageTransform

SIZE = (24, 24)
PROCESSORS = {
    "plain": ("ViTImageProcessorPil", {"size": {"height": 24, "width": 24}, "image_mean": [0.4, 0.5, 0.6]}),
    "bicubic": ("ViTImageProcessorPil", {"size": {"height": 24, "width": 24}, "resample": 3}),
    "no normalization": ("ViTImageProcessorPil", {"size": {"height": 24, "width": 24}, "do_normalize": False}),
    "only bytes": (
        "ViTImageProcessorPil",
        {"size": {"height": 24, "width": 24}, "do_normalize": False, "do_rescale": False},
    ),
    "cropped": (
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 24}},
    ),
    "crop_pct": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 24}, "crop_pct": 0.875}),
    "blue first": (
        "MobileViTImageProcessorPil",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 24}, "do_flip_channel_order": True},
    ),
}


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def processor(name: str) -> Any:
    kind, options = PROCESSORS[name]
    return getattr(transformers, kind)(**options)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_picture_is_what_the_processor_makes_of_it(name: str) -> None:
    made = processor(name)
    transform = ImageTransform(made, SIZE, 3, "none", 0)
    for image in (picture(40, 31), picture(24, 24, 1), picture(9, 50, 2), picture(300, 200, 3)):
        wanted = made(image, return_tensors="np")["pixel_values"][0].astype(np.float32)
        np.testing.assert_array_equal(transform(image, 0), wanted)


@pytest.mark.parametrize("name", ["plain", "cropped", "crop_pct"])
def test_common_processors_are_taken_apart(name: str) -> None:
    steps = find_steps(processor(name), SIZE, 3)
    assert steps is not None and steps(picture(50, 40)).levels.dtype == np.uint8


def test_what_changes_channels_is_not_taken_apart() -> None:
    assert find_steps(processor("blue first"), SIZE, 3) is None


def test_what_depends_on_the_whole_picture_is_not_taken_apart() -> None:
    plain = processor("plain")

    class Brightest:
        resample = 2

        def __call__(self, image: Any, **options: Any) -> Any:
            values = np.asarray(plain(image, **options)["pixel_values"])
            return {"pixel_values": values / max(values.max(), 1e-3)}

    assert find_steps(Brightest(), SIZE, 3) is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_batch_of_levels_has_the_same_values_on_the_device(channels: int, dtype: torch.dtype) -> None:
    options = {"image_mean": [0.4] * channels, "image_std": [0.3] * channels}
    made = transformers.ViTImageProcessorPil(size={"height": 24, "width": 24}, **options)
    transform = ImageTransform(made, SIZE, channels, "none", 0)
    images = [transform(picture(40, 30, seed), 0) for seed in range(3)]
    inputs = stack_pixels(images)
    wanted = torch.from_numpy(np.stack([np.asarray(image) for image in images])).to(dtype)
    assert inputs["pixel_values"].dtype == torch.uint8 and inputs["pixel_values"].shape == wanted.shape
    found = pixel_values(inputs, dtype)
    assert list(found) == ["pixel_values"] and torch.equal(found["pixel_values"], wanted)
    assert found["pixel_values"].is_contiguous(), "on a CPU, channels come first in memory as before"


def test_floats_among_levels_make_a_batch_of_floats() -> None:
    transform = ImageTransform(processor("plain"), SIZE, 3, "none", 0)
    one = transform(picture(40, 30), 0)
    inputs = stack_pixels([one, np.asarray(one) + 1])
    assert list(inputs) == ["pixel_values"] and inputs["pixel_values"].dtype == torch.float32
    assert torch.equal(inputs["pixel_values"][1], inputs["pixel_values"][0] + 1)
    np.testing.assert_array_equal(pixel_values(inputs, torch.float32)["pixel_values"][0], np.asarray(one))


def test_levels_reach_other_processes_small() -> None:
    transform = ImageTransform(processor("plain"), SIZE, 3, "none", 0)
    one = transform(picture(40, 30), 0)
    assert isinstance(one, LevelPixels) and len(pickle.dumps(one)) < 24 * 24 * 3 + 3 * 256 * 4 + 1000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)), np.asarray(one))


def test_crops_and_flips_have_the_values_of_the_processor() -> None:
    made = processor("plain")
    transform = ImageTransform(made, SIZE, 3, "crop_flip", 7)
    for number in range(3):
        found = transform(picture(40, 30), number)
        assert isinstance(found, LevelPixels)
        wanted = made(Image.fromarray(found.levels), return_tensors="np", do_resize=False)["pixel_values"][0]
        np.testing.assert_array_equal(found, wanted.astype(np.float32))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 1, 5, 4), (1, 3, 1, 1), (3, 3, 1, 6)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_lie_in_memory_as_their_levels_do(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    levels = torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=layout)
    table = torch.randn(shape[1], 256)
    found = look_up(levels, table)
    assert found.is_contiguous(memory_format=layout)
    for channel in range(shape[1]):
        assert torch.equal(found[:, channel], table[channel][levels[:, channel].long()])


def test_levels_are_drawn_as_their_values_are() -> None:
    made = processor("plain")
    pixels = ImageTransform(made, SIZE, 3, "none", 0)(picture(40, 30), 0)
    assert isinstance(pixels, LevelPixels)
    found = {"boxes": [[2.0, 3.0, 10.0, 8.0]], "labels": [0], "scores": [0.9]}
    drawn = [
        draw_detections(given, made, (40, 30), {"boxes": [], "labels": []}, found, ["thing"], 0.5)
        for given in (pixels, np.asarray(pixels))
    ]
    assert drawn[0].tobytes() == drawn[1].tobytes()
    examples: list[dict[str, Any]] = [{"pixel_values": pixels}, {"pixel_values": np.asarray(pixels)}]
    one, other = (draw_example(made, example) for example in examples)
    assert one.tobytes() == other.tobytes()
