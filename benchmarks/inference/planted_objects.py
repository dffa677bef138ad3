"""Objects planted across the borders of tiles: recall and duplicates of the whole image, of tiles, and of ways to merge them.

    python -m benchmarks.inference.planted_objects [--scenes 40] [--seed 0]        # results: README.md

The detector is synthetic, so that only cutting and merging can fail: it reports every object of which it sees enough, at the
resolution that its input has, with edges that are off by a few percent, and beside them a hundred boxes of low score, as
detectors of the DETR family do. SAHI's merge, if it is installed (`pip install --no-deps sahi==0.12.1`), gets the same boxes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.inference.pieces.box_merging import iou, merge_boxes
from finetune.inference.pieces.tiles import Window, cut_image
from finetune.tasks.vision.boxes import xywh

INPUT = 640  # pixels of a side of the detector's input
LEAST_SEEN, SMALLEST = 0.2, 8.0  # share of an object that must be visible; its shorter side in pixels of the input
CLEAR = 0.5  # score from which a box counts
MAX_BOXES = 1000

Detections = Mapping[str, Any]
Tiles = Sequence[tuple[Window, Detections]]


@dataclass(frozen=True)
class Scene:
    """Objects of an image. corners: float64 [n, 4]. labels: int64 [n]."""

    size: tuple[int, int]
    corners: np.ndarray
    labels: np.ndarray


def plant(
    rng: np.random.Generator, size: tuple[int, int], tile: int, overlap: float, *, crowded: bool = False
) -> Scene:
    """Objects of 12 to 900 pixels, half of them on borders of tiles. crowded: they may cover each other."""
    width, height = size
    borders = cut_image(width, height, tile, overlap, whole_image=False)
    corners, labels = np.empty((0, 4)), np.empty(0, np.int64)
    for _ in range(600):
        side = float(np.exp(rng.uniform(np.log(12), np.log(900))))
        wide, high = side * rng.uniform(0.6, 1.6), side * rng.uniform(0.6, 1.6)
        if rng.random() < 0.5:
            window = borders[int(rng.integers(len(borders)))]
            x = float(rng.choice([window.left, window.right])) + rng.uniform(-0.4, 0.4) * wide
            y = rng.uniform(high / 2, max(high, height - high / 2))
        else:
            x, y = rng.uniform(0, width), rng.uniform(0, height)
        box = np.array([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2])
        if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height or min(wide, high) < 12:
            continue
        covered = _covered(box, corners)
        if (covered > 0).any() if not crowded else (iou(box, corners) > 0.35).any():
            continue
        corners, labels = np.vstack([corners, box]), np.append(labels, rng.integers(3))
        if len(labels) == 60:
            break
    return Scene(size, corners, labels)


def detect(rng: np.random.Generator, scene: Scene, window: Window) -> Detections:
    """What the synthetic detector finds in a window, in the window's pixels."""
    low, high = np.array(window.corners[:2]), np.array(window.corners[2:])
    sides = high - low
    visible = np.concatenate(
        [np.clip(scene.corners[:, :2], low, high), np.clip(scene.corners[:, 2:], low, high)], axis=1
    )
    shares = _area(visible) / _area(scene.corners)
    seen_sides = (visible[:, 2:] - visible[:, :2]) * (INPUT / sides)
    seen = (shares >= LEAST_SEEN) & (seen_sides.min(axis=1) >= SMALLEST)
    boxes = visible[seen] - np.tile(low, 2)
    extent = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = np.clip(boxes + extent * rng.normal(0, 0.02, boxes.shape), 0, np.tile(sides, 2))
    scores = np.clip(0.55 + 0.4 * shares[seen] + rng.normal(0, 0.03, len(boxes)), CLEAR, 1)
    starts = rng.uniform(0, 0.9, (100, 2)) * sides
    noise = np.concatenate([starts, np.minimum(starts + rng.uniform(0.02, 0.6, (100, 2)) * sides, sides)], axis=1)
    return {
        "boxes": xywh([*boxes.tolist(), *noise.tolist()]),
        "labels": [*scene.labels[seen].tolist(), *rng.integers(0, 3, 100).tolist()],
        "scores": [round(float(score), 5) for score in (*scores, *rng.uniform(0.01, 0.2, 100))],
    }


@dataclass
class Counts:
    """Over several scenes. duplicates: clear boxes on an object that has its box already; wrong: on none."""

    objects: int = 0
    found: int = 0
    duplicates: int = 0
    wrong: int = 0

    @property
    def recall(self) -> float:
        """Share of the objects that have a box with an IoU of 0.5 or more."""
        return self.found / self.objects

    def add(self, scene: Scene, detections: Detections) -> None:
        """Match boxes to objects, the best first, each object once."""
        boxes = np.array(detections["boxes"], np.float64).reshape(-1, 4)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        free = np.ones(len(scene.labels), bool)
        for index in np.argsort(-np.array(detections["scores"]), kind="stable"):
            if detections["scores"][index] < CLEAR:
                break
            same = scene.labels == detections["labels"][index]
            overlap = np.where(same, iou(corners[index], scene.corners), 0)
            open_overlap = np.where(free, overlap, 0)
            if open_overlap.max(initial=0) >= 0.5:
                free[int(open_overlap.argmax())] = False
            elif np.where(same, _covered(corners[index], scene.corners), 0).max(initial=0) >= 0.5:
                self.duplicates += 1
            else:
                self.wrong += 1
        self.objects += len(free)
        self.found += int((~free).sum())


def merge_with_sahi(tiles: Tiles, size: tuple[int, int], limit: int) -> Detections:
    """All boxes by SAHI's default: greedy merging by intersection over the smaller area, per class."""
    from sahi.postprocess._numpy_backend import greedy_nmm_numpy

    rows = []
    for window, found in tiles:
        for (left, top, wide, high), label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
            x, y = left + window.left, top + window.top
            rows.append([x, y, x + wide, y + high, score, label])
    table = np.array([row for row in rows if row[4] >= CLEAR]).reshape(-1, 6)  # its confidence threshold
    merged = []
    for label in np.unique(table[:, 5]):
        own = table[table[:, 5] == label]
        for keeper, others in greedy_nmm_numpy(own, "IOS", 0.5).items():
            group = own[[keeper, *others]]
            merged.append([*group[:, :2].min(axis=0), *group[:, 2:4].max(axis=0), group[:, 4].max(), label])
    return {
        "boxes": xywh([row[:4] for row in merged]),
        "labels": [int(row[5]) for row in merged],
        "scores": [row[4] for row in merged],
    }


def concatenate(tiles: Tiles, size: tuple[int, int], limit: int) -> Detections:
    """No merging at all."""
    found: dict[str, list[Any]] = {"boxes": [], "labels": [], "scores": []}
    for window, part in tiles:
        found["boxes"] += [[x + window.left, y + window.top, w, h] for x, y, w, h in part["boxes"]]
        found["labels"] += part["labels"]
        found["scores"] += part["scores"]
    return found


def compare(scenes: int, seed: int, *, crowded: bool, tile: int = 640, overlap: float = 0.2) -> dict[str, Counts]:
    """Counts of every way, from the same boxes."""
    ways: dict[str, tuple[str, Callable[[Tiles, tuple[int, int], int], Detections]]] = {
        "the whole image alone": ("whole", merge_boxes),
        "tiles and the whole image": ("all", merge_boxes),
        "tiles alone": ("tiles", merge_boxes),
        "tiles and the whole image, not merged": ("all", concatenate),
        "tiles and the whole image, SAHI's merge": ("all", merge_with_sahi),
        "tiles alone, SAHI's merge": ("tiles", merge_with_sahi),
    }
    try:
        import sahi  # noqa: F401
    except ImportError:
        ways = {name: way for name, way in ways.items() if "SAHI" not in name}
    counts = {name: Counts() for name in ways}
    for number in range(scenes):
        rng = np.random.default_rng([seed, number])
        size = (int(rng.integers(1200, 3000)), int(rng.integers(900, 2400)))
        scene = plant(rng, size, tile, overlap, crowded=crowded)
        windows = cut_image(*size, tile, overlap, whole_image=True)
        found = [(window, detect(rng, scene, window)) for window in windows]
        parts = {"whole": found[:1], "all": found, "tiles": found[1:]}
        for name, (which, merge) in ways.items():
            counts[name].add(scene, merge(parts[which], size, MAX_BOXES))
    return counts


def _covered(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over the smaller area, with each of the others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    return np.maximum(high - low, 0).prod(axis=1) / np.minimum(_area(box), _area(others))


def _area(corners: np.ndarray) -> Any:
    return (corners[..., 2:] - corners[..., :2]).prod(axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for crowded in (False, True):
        print(f"\n{'objects that cover each other' if crowded else 'objects apart from each other'}")
        print(f"| {'':40} | recall | duplicates | on no object |\n|---|---|---|---|")
        for name, one in compare(arguments.scenes, arguments.seed, crowded=crowded).items():
            share = one.duplicates / one.objects
            print(f"| {name:40} | {one.recall:.4f} | {one.duplicates:,} ({share:.2%}) | {one.wrong:,} |")
        print(f"{one.objects:,} objects in {arguments.scenes} images")


if __name__ == "__main__":
    main()
