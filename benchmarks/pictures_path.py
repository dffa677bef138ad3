"""What a picture costs on its way from a JPEG file to the model: per core of loader processes, and per batch of the rank.

python -m benchmarks.pictures_path [--batch 128] [--batches 6]

Files of 256 x 256 pixels become 224 x 224, by what the product does and by the image processor called for each picture, as
before. On a GPU also the seconds of the copy and of the look-up there. One thread computes; a second process decodes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from finetune.data.images import decode_image
from finetune.data.order.loader import RankStep, iterate_batches
from finetune.tasks.batch import Batch, map_tensors
from finetune.tasks.vision.levels import pixel_values, stack_pixels
from finetune.tasks.vision.transforms import ImageTransform

SIZE = (224, 224)


class Pictures:
    """Examples of a folder: {"id", "pixel_values"} by one of two ways."""

    def __init__(self, files: Sequence[Path], make: Callable[[str, int], Any]) -> None:
        self.files, self.make = files, make

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": index, "pixel_values": self.make(str(self.files[index % len(self.files)]), index)}


def write_pictures(folder: Path, count: int, *, noisy: bool) -> list[Path]:
    """JPEG files of 256 x 256 pixels: smooth, or with as much detail as a sharp photograph."""
    rng = np.random.default_rng(0)
    files = []
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (64 if noisy else 16, 64 if noisy else 16, 3), np.uint8))
        files.append(folder / f"{'noisy' if noisy else 'smooth'}-{index}.jpg")
        small.resize((256, 256), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def by_processor(processor: Any) -> Callable[[str, int], np.ndarray]:
    """As before: the processor's own float32 pixels."""

    def make(file: str, _: int) -> np.ndarray:
        pixels = processor(decode_image(file), return_tensors="np")["pixel_values"][0]
        return np.ascontiguousarray(pixels, np.float32)

    return make


def collate(examples: Sequence[dict[str, Any]]) -> Batch:
    """As image classification does."""
    return Batch(tuple(one["id"] for one in examples), stack_pixels([one["pixel_values"] for one in examples]))


def worker_seconds(pictures: Pictures, batch: int, batches: int) -> float:
    """CPU seconds of one batch in the process that decodes it, collated but not handed over."""
    collate([pictures[index] for index in range(8)])
    began = time.process_time()
    for number in range(batches):
        collate([pictures[number * batch + index] for index in range(batch)])
    return (time.process_time() - began) / batches


def rank_seconds(pictures: Pictures, batch: int, batches: int) -> tuple[float, int]:
    """(CPU seconds of the rank's process for a batch that another process made, all its threads; bytes of the batch)."""

    def steps() -> Iterator[RankStep]:
        for number in range(batches + 2):
            yield RankStep(number, 0, (tuple(range(number * batch, (number + 1) * batch)),))

    taken = iterate_batches(pictures, collate, steps(), workers=1, pin_memory=torch.cuda.is_available())  # type: ignore[arg-type]
    next(taken), next(taken)
    began, held = time.process_time(), 0
    for _, (one,) in taken:
        held = sum(tensor.numel() * tensor.element_size() for tensor in one.inputs.values())
    return (time.process_time() - began) / batches, held


def device_seconds(batch: Batch, repeats: int = 20) -> tuple[float, float]:
    """(copy to the GPU, pixels of the model out of it)."""
    pinned = batch.pin_memory()
    moved = pinned.to(torch.device("cuda"))
    found = []
    for work in (lambda: map_tensors(pinned.inputs, lambda t: t.to("cuda", non_blocking=True)),
                 lambda: pixel_values(moved.inputs, torch.float32)):  # fmt: skip
        work()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - began) / repeats)
    return found[0], found[1]


def main() -> None:
    """See the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processor = transformers.ViTImageProcessorPil(size={"height": SIZE[0], "width": SIZE[1]})
    ways = {"processor": by_processor(processor), "ours": ImageTransform(processor, SIZE, 3, "none", 0)}
    with tempfile.TemporaryDirectory() as folder:
        for noisy in (False, True):
            files = write_pictures(Path(folder), 64, noisy=noisy)
            for name, make in ways.items():
                pictures = Pictures(files, make)
                worker = worker_seconds(pictures, arguments.batch, arguments.batches)
                rank, held = rank_seconds(pictures, arguments.batch, arguments.batches)
                line = (
                    f"{'noisy' if noisy else 'smooth'} {name}: {arguments.batch / worker:,.0f} images/s per core "
                    f"({1000 * worker / arguments.batch:.2f} ms each); rank {1000 * rank:.1f} ms a batch of "
                    f"{held / 1e6:.1f} MB"
                )
                if torch.cuda.is_available():
                    copy, look = device_seconds(collate([pictures[index] for index in range(arguments.batch)]))
                    line += f"; copy {1000 * copy:.2f} ms, pixels {1000 * look:.2f} ms on the device"
                print(line, flush=True)


if __name__ == "__main__":
    main()
