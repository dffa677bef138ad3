"""Makes one list of boxes of those that were found in the tiles of an image.

A box that ends at a tile's inner border is a fragment: the tile may have cut its object. A box of the whole image is coarse if
a tile shows all of it, at a higher resolution. All others are complete. Per class, the best box first:

    complete, complete     the same object from an intersection over union (IoU) of 0.5 on: the better box stays (NMS)
    complete, fragment     the same from half of the fragment on (the intersection over the smaller area, where the fragment
                           is the smaller one): the complete box stays
    complete, coarse       the same from half of the smaller one on: the complete box stays
    fragment, fragment     of two tiles: the same where they agree on what both tiles see, that is if the IoU of the two
                           boxes, each cut to the other's tile, is 0.5 or more: they are joined to the box around both, and
                           then compared with further tiles. So objects larger than the overlap become one box, and a small
                           object before a large one stays apart, which intersection over smaller area alone joins

Fragments and coarse boxes count half when boxes are ordered, so that a complete box wins unless its score is below half of
theirs; and a fragment stretches a joined box only if its score is at least half of the box's. So boxes of low score, of which
detectors of the DETR family give a hundred per image, neither replace nor distort good ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.inference.pieces.tiles import Window
from finetune.tasks.vision.boxes import xywh

SAME = 0.5
EDGE_OF_TILE, EDGE_OF_BOX = 0.01, 0.05  # a box this near to a border touches it: shares of the tile's and its own side
EDGE_PIXELS = 2.0  # ... at least
PARTIAL = 0.5  # weight of the score of fragments and coarse boxes
COMPARED = 20  # boxes that are compared, for each that is asked for: bounds the time where tiles are many


@dataclass
class Found:
    """Boxes of one image: corners float64 [n, 4] in its pixels, scores [n], labels [n], windows [n, 4] (the corners of the
    tile of each), is_fragment and is_coarse [n].
    """

    corners: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    windows: np.ndarray
    is_fragment: np.ndarray
    is_coarse: np.ndarray

    def take(self, chosen: np.ndarray) -> Found:
        """The chosen ones, in their order."""
        return Found(*(values[chosen] for values in vars(self).values()))

    @property
    def weights(self) -> np.ndarray:
        """What their scores count where boxes are ordered."""
        return np.where(self.is_fragment | self.is_coarse, PARTIAL, 1.0)

    @property
    def order(self) -> np.ndarray:
        """Indices by descending priority. Ties are broken by the boxes themselves, not by their order."""
        priority = self.weights * self.scores
        return np.lexsort((*self.windows.T, *self.corners.T, -self.scores, -priority))


def merge_boxes(
    tiles: Sequence[tuple[Window, Mapping[str, Any]]], size: tuple[int, int], limit: int
) -> dict[str, list[Any]]:
    """{"boxes": [[left, top, width, height]], "labels", "scores"} of an image, by descending score; at most `limit`.

    tiles: each window with its detections in the same form, in the window's own pixels. size: width and height of the
    image. The order of the tiles does not matter.
    """
    found = _collect(tiles, size)
    best = np.argsort(-found.scores, kind="stable")[: COMPARED * limit]
    found = found.take(best)
    merged: list[tuple[float, int, list[float]]] = []
    for label in np.unique(found.labels):
        for corners, score in _merge_class(found.take(found.labels == label), limit):
            merged.append((score, int(label), corners.tolist()))
    merged.sort(key=lambda one: (-one[0], one[1], one[2]))
    merged = merged[:limit]
    return {
        "boxes": xywh([corners for _, _, corners in merged]),
        "labels": [label for _, label, _ in merged],
        "scores": [score for score, _, _ in merged],
    }


def _collect(tiles: Sequence[tuple[Window, Mapping[str, Any]]], size: tuple[int, int]) -> Found:
    """All boxes in the pixels of the image, sorted by tile."""
    corners, scores, labels, windows = [], [], [], []
    for window, detections in sorted(tiles, key=lambda one: one[0].corners):
        boxes = np.array(detections["boxes"], np.float64).reshape(-1, 4)
        boxes[:, :2] += window.left, window.top
        boxes[:, 2:] += boxes[:, :2]
        corners.append(boxes)
        scores += detections["scores"]
        labels += detections["labels"]
        windows.append(np.tile(np.array(window.corners, np.float64), (len(boxes), 1)))
    all_corners, all_windows = np.concatenate(corners), np.concatenate(windows)
    is_fragment = _touches(all_corners, all_windows, size)
    is_coarse = (all_windows == [0, 0, *size]).all(axis=1) & _fits(all_corners, [window for window, _ in tiles], size)
    return Found(
        all_corners, np.array(scores, np.float64), np.array(labels, np.int64), all_windows, is_fragment, is_coarse
    )


def _fits(corners: np.ndarray, windows: Sequence[Window], size: tuple[int, int]) -> np.ndarray:
    """Which boxes a tile shows as a whole, away from its inner borders: bool [n]."""
    fits = np.zeros(len(corners), bool)
    for window in windows:
        edges = np.array(window.corners, np.float64)
        if window.corners != (0, 0, *size):
            inside = (corners[:, :2] >= edges[:2]).all(axis=1) & (corners[:, 2:] <= edges[2:]).all(axis=1)
            fits |= inside & ~_touches(corners, np.tile(edges, (len(corners), 1)), size)
    return fits


def _touches(corners: np.ndarray, windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which boxes end at a border of their tile that is not one of the image: bool [n]."""
    width, height = size
    sides, extent = windows[:, 2:] - windows[:, :2], corners[:, 2:] - corners[:, :2]
    near = np.maximum(np.maximum(EDGE_OF_TILE * sides, EDGE_OF_BOX * extent), EDGE_PIXELS)
    begins = (corners[:, :2] - windows[:, :2] <= near) & (windows[:, :2] > 0)
    ends = (windows[:, 2:] - corners[:, 2:] <= near) & (windows[:, 2:] < [width, height])
    return (begins | ends).any(axis=1)


def _merge_class(found: Found, limit: int) -> list[tuple[np.ndarray, float]]:
    """(corners, score) of the objects of one class; at least the `limit` best of them."""
    rest, merged, best = found.take(found.order), list[tuple[np.ndarray, float]](), list[float]()
    while len(rest.scores):
        most = rest.scores[0] * rest.weights[0] / PARTIAL  # no box behind it has more
        if len(best) == limit and best[0] >= most:
            break
        first, rest = rest.take(np.array([0])), rest.take(np.arange(1, len(rest.scores)))
        if first.is_fragment[0]:
            corners, is_same = _join(first, rest)
        else:
            corners = first.corners[0]
            is_same = _is_same(corners, rest, rest.is_fragment)
        score = max([float(first.scores[0]), *rest.scores[is_same].tolist()])
        merged.append((corners, score))
        heapq.heappush(best, score)
        if len(best) > limit:
            heapq.heappop(best)
        rest = rest.take(~is_same)
    return merged


def _join(first: Found, rest: Found) -> tuple[np.ndarray, np.ndarray]:
    """(corners around a fragment and those of its object, which of `rest` are of the same object: bool [n])."""
    corners, score = first.corners[0].copy(), first.scores[0]
    is_same = np.zeros(len(rest.scores), bool)
    members = [(first.corners[0], first.windows[0])]
    seen = [first.windows[0]]
    while members:
        box, window = members.pop()
        agree = rest.is_fragment & ~is_same & (_agreement(box, window, rest) >= SAME)
        is_same |= agree
        for index in np.flatnonzero(agree):
            fresh = not any(np.array_equal(rest.windows[index], other) for other in seen)
            if fresh and rest.scores[index] >= PARTIAL * score:  # one box per tile stretches the joined one
                seen.append(rest.windows[index])
                members.append((rest.corners[index], rest.windows[index]))
                corners[:2] = np.minimum(corners[:2], rest.corners[index, :2])
                corners[2:] = np.maximum(corners[2:], rest.corners[index, 2:])
    is_same |= ~rest.is_fragment & _is_same(corners, rest, np.zeros_like(is_same))
    return corners, is_same


def _is_same(corners: np.ndarray, rest: Found, is_fragment: np.ndarray) -> np.ndarray:
    """Which boxes behind a box are of its object: bool [n]. is_fragment: which of them count as fragments."""
    inside, areas = _intersection(corners, rest.corners), _area(rest.corners)
    partial = inside / np.where(is_fragment, areas, np.minimum(areas, _area(corners)))
    return np.where(is_fragment | rest.is_coarse, partial, iou(corners, rest.corners)) >= SAME


def _agreement(box: np.ndarray, window: np.ndarray, others: Found) -> np.ndarray:
    """IoU of a box and others, each cut to the other's tile; plain IoU within a tile: [n]."""
    return iou(_clip(box, others.windows), _clip(others.corners, window))


def _clip(corners: np.ndarray, windows: np.ndarray) -> np.ndarray:
    low = np.maximum(corners[..., :2], windows[..., :2])
    high = np.minimum(corners[..., 2:], windows[..., 2:])
    return np.concatenate([low, np.maximum(high, low)], axis=-1)


def iou(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of corners, [4] or [n, 4], with corners [n, 4]: [n]; 0 where both are empty."""
    inter = _intersection(one, others)
    union = _area(one) + _area(others) - inter
    return inter / np.maximum(union, np.finfo(np.float64).tiny)


def _intersection(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    low = np.maximum(one[..., :2], others[..., :2])
    high = np.minimum(one[..., 2:], others[..., 2:])
    return np.maximum(high - low, 0).prod(axis=-1)


def _area(corners: np.ndarray) -> np.ndarray:
    """Never 0, as it divides."""
    return np.maximum((corners[..., 2:] - corners[..., :2]).prod(axis=-1), np.finfo(np.float64).tiny)
