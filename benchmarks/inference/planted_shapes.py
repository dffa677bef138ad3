"""A trained detector on images with shapes across the borders of tiles: recall and duplicates, whole and in tiles.

    python -m benchmarks.inference.planted_shapes [--folder DIR] [--epochs 6]        # results: README.md

A small D-FINE is trained on crops of 96 x 96 pixels in which shapes may be cut by the border, as tiles cut them, and asked for
images of 320 x 288 pixels and more with shapes of the same sizes, half of them on borders of tiles. It takes about five minutes
on one core; with --folder, a trained run is used again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.inference.planted_objects import Counts, Scene
from finetune.inference.pieces.tiles import cut_image

SIDE, OVERLAP = 96, 0.4
NAMES = ("circle", "square")
SMALLEST, LARGEST = 14, 60
_STAGES = {"stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [1, 1, 1, 1], "depths": [1, 1, 1, 1]}
MODEL = {
    "source": "d_fine",
    "init": "config",
    "config": {
        "backbone_config": {
            "model_type": "hgnet_v2",
            "stem_channels": [3, 16, 16],
            "stage_in_channels": [16, 24, 32, 48],
            "stage_mid_channels": [16, 16, 24, 32],
            "stage_out_channels": [24, 32, 48, 64],
            "hidden_sizes": [24, 32, 48, 64],
            "out_indices": [2, 3, 4],
            **_STAGES,
        },
        "encoder_in_channels": [32, 48, 64],
        "decoder_in_channels": [64, 64, 64],
        "d_model": 64,
        "encoder_hidden_dim": 64,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "decoder_layers": 2,
        "num_queries": 20,
        "num_denoising": 20,
        "depth_mult": 0.34,
        "hidden_expansion": 0.5,
    },
}


def draw(
    rng: np.random.Generator, size: tuple[int, int], count: int, borders: list[tuple[int, int]]
) -> tuple[Any, Scene]:
    """Shapes that do not cover each other, half of them on `borders` (left and right edges of tiles)."""
    width, height = size
    noise = rng.integers(0, 70, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR)
    pen, corners, labels = ImageDraw.Draw(image), np.empty((0, 4)), []
    for _ in range(60 * count):
        wide = int(rng.integers(SMALLEST, LARGEST))
        high = min(LARGEST, max(SMALLEST, int(wide * rng.uniform(0.7, 1.4))))
        x, y = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
        if borders and rng.random() < 0.5:
            x = int(np.clip(borders[int(rng.integers(len(borders)))][int(rng.integers(2))] - wide / 2, 0, width - wide))
        box = np.array([x, y, x + wide, y + high], float)
        if (
            len(corners)
            and ((np.minimum(box[2:], corners[:, 2:]) - np.maximum(box[:2], corners[:, :2])) > -3).all(axis=1).any()
        ):
            continue
        label = int(rng.integers(2))
        color = tuple(int(value) for value in rng.integers(130, 256, 3))
        (pen.ellipse if label == 0 else pen.rectangle)([x, y, x + wide - 1, y + high - 1], fill=color)
        corners, labels = np.vstack([corners, box]), [*labels, label]
        if len(labels) == count:
            break
    return image, Scene(size, corners, np.array(labels, np.int64))


def write_crops(folder: Path, count: int, seed: int) -> Path:
    """Training images: crops of larger scenes; a shape of which a fifth is visible is labeled."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        image, scene = draw(rng, (2 * SIDE, 2 * SIDE), int(rng.integers(2, 9)), [])
        side = SIDE
        left, top = (int(value) for value in rng.integers(0, SIDE + 1, 2))
        low, high = np.array([left, top]), np.array([left + side, top + side])
        boxes, names = [], []
        for corners, label in zip(scene.corners, scene.labels, strict=True):
            seen = np.concatenate([np.clip(corners[:2], low, high), np.clip(corners[2:], low, high)])
            sides = seen[2:] - seen[:2]
            if sides.min() >= 4 and sides.prod() >= 0.2 * (corners[2:] - corners[:2]).prod():
                boxes.append([*(seen[:2] - low).tolist(), *sides.tolist()])
                names.append(NAMES[label])
        image.crop((left, top, left + side, top + side)).save(folder / f"{seed}-{index}.png")
        rows.append({"image": str(folder / f"{seed}-{index}.png"), "objects": {"bbox": boxes, "category": names}})
    path = folder / f"{seed}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def train(folder: Path, epochs: int) -> None:
    recipe = {
        "name": "shapes",
        "task": "object_detection",
        "model": MODEL,
        "data": {
            "train": [{"source": str(write_crops(folder / "crops", 1600, 1))}],
            "validation": [{"source": str(write_crops(folder / "crops", 200, 2))}],
        },
        "options": {"image_size": SIDE, "augment": "flip", "labels": list(NAMES)},
        "training": {
            "epochs": epochs,
            "global_batch": 16,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup": 0.03,
            "precision": "fp32",
        },
        "parallel": {"deepspeed": "none"},
        "evaluation": {"every": 300},
        "checkpoint": {"every": 300},
        "tracking": {"wandb": "off"},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "finetune", "train", str(path)], check=True, cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--seed", type=int, nargs="+", default=[9, 10, 11], help="of the images; a table for each")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    if not (folder / "runs").exists():
        train(folder, arguments.epochs)
    for seed in arguments.seed:
        print(f"\nseed {seed}")
        compare(folder, arguments.scenes, seed)


def compare(folder: Path, scenes: int, seed: int) -> None:
    import finetune

    (plan,) = (folder / "runs").glob("**/plan.json")
    model = finetune.load(plan.parent)
    ways: dict[str, dict[str, Any]] = {
        "the whole image alone": {},
        "tiles and the whole image": {"tile": SIDE, "overlap": OVERLAP},
        "tiles alone": {"tile": SIDE, "overlap": OVERLAP, "whole_image": False},
    }
    drawn = []
    for number in range(scenes):
        rng = np.random.default_rng([seed, number])
        size = (int(rng.integers(288, 448)), int(rng.integers(240, 384)))
        borders = [(window.left, window.right) for window in cut_image(*size, SIDE, OVERLAP, whole_image=False)]
        drawn.append(draw(rng, size, 24, borders))
    print(f"| {'':30} | recall | duplicates | on no object |\n|---|---|---|---|")
    for name, options in ways.items():
        counts = Counts()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            records = model.predict([image for image, _ in drawn], threshold=0.5, **options)
        for record, (_, scene) in zip(records, drawn, strict=True):
            boxes = record["boxes"]
            counts.add(
                scene,
                {
                    "boxes": [one["box"] for one in boxes],
                    "labels": [NAMES.index(one["label"]) for one in boxes],
                    "scores": [one["score"] for one in boxes],
                },
            )
        share = counts.duplicates / counts.objects
        print(
            f"| {name:30} | {counts.recall:.4f} | {counts.duplicates:,} ({share:.2%}) | {counts.wrong:,} |", flush=True
        )
    print(f"{counts.objects:,} shapes in {scenes} images")


if __name__ == "__main__":
    main()
