"""Peak memory of a large image that is answered in tiles: `finetune.load(...).predict(tile=...)` beside all tiles at once.

    python -m benchmarks.inference.huge_image [--side 20000]        # results: benchmarks/README.md

A JPEG file of side x side pixels, and a small ResNet with random weights. Each side runs in a process of its own; what its
memory was before the image is subtracted. In units of the decoded image: 3 bytes per pixel.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

TILE = 640
MIB = 1 << 20


def write_image(path: Path, side: int) -> None:
    """Noise, enlarged: it is neither trivial to decode nor slow to make."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (side // 50, side // 50, 3), np.uint8)
    Image.fromarray(noise).resize((side, side), Image.Resampling.BILINEAR).save(path, quality=85)


def write_model(folder: Path) -> None:
    """A ResNet of two stages that sees 64 x 64 pixels."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification, set_seed

    set_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2)
    ResNetForImageClassification(config).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=1.0).save_pretrained(folder)


def tiles_and_whole(model: Path, image: Path) -> Callable[[], Any]:
    """One image at a time is decoded, and the tiles of one chunk; the image processor gets the whole image as well."""
    import finetune

    loaded = finetune.load(model)
    return lambda: loaded.predict([{"image": str(image)}], tile=TILE)


def tiles_alone(model: Path, image: Path) -> Callable[[], Any]:
    """Without the whole image."""
    import finetune

    loaded = finetune.load(model)
    return lambda: loaded.predict([{"image": str(image)}], tile=TILE, whole_image=False)


def all_at_once(model: Path, image: Path) -> Callable[[], Any]:
    """All tiles as one batch of the image processor, as a script does it."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from finetune.inference.pieces.tiles import cut_image

    Image.MAX_IMAGE_PIXELS = None
    processor = AutoImageProcessor.from_pretrained(model)
    network = AutoModelForImageClassification.from_pretrained(model).eval()

    def answer() -> Any:
        whole = Image.open(image).convert("RGB")
        tiles = [whole.crop(one.corners) for one in cut_image(*whole.size, TILE, 0.2, whole_image=True)]
        with torch.no_grad():
            return network(**processor(tiles, return_tensors="pt")).logits

    return answer


def measure(way: Callable[[Path, Path], Callable[[], Any]], model: Path, image: Path, found: Any) -> None:
    """Put (bytes that the peak grew by, record or shape) into a queue."""
    answer = way(model, image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = answer()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    found.put((grown, json.dumps(result)[:200] if isinstance(result, list) else str(tuple(result.shape))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000)
    side = parser.parse_args().side
    from finetune.data.images import allow_pixels

    allow_pixels(side * side)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        model, image = Path(scratch) / "model", Path(scratch) / "image.jpg"
        for write, arguments in ((write_model, (model,)), (write_image, (image, side))):  # peaks are inherited
            writer = context.Process(target=write, args=arguments)
            writer.start()
            writer.join()
        decoded = 3 * side * side
        print(
            f"{side:,} x {side:,} pixels: file {image.stat().st_size / MIB:,.0f} MiB, decoded {decoded / MIB:,.0f} MiB"
        )
        ways = {
            "tiles and the whole image": tiles_and_whole,
            "tiles alone": tiles_alone,
            "all tiles at once": all_at_once,
        }
        for name, way in ways.items():
            queue = context.Queue()
            process = context.Process(target=measure, args=(way, model, image, queue))
            process.start()
            grown, result = queue.get()
            process.join()
            print(
                f"{name}: peak {grown / MIB:,.0f} MiB more, {grown / decoded:.2f} of the decoded image; {result}",
                flush=True,
            )


if __name__ == "__main__":
    main()
