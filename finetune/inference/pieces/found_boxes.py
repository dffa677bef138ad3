"""Boxes that were found in the windows of an image, in its pixels, and the objects that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.inference.pieces.tiles import Window

SAME = 0.5
EDGE_OF_TILE, EDGE_OF_BOX = 0.01, 0.05  # a box this near to a border touches it: shares of the tile's and its own side
EDGE_PIXELS = 2.0  # ... at least
PARTIAL = 0.5  # weight of the score of fragments; the least share of another's score with which a box replaces it


@dataclass
class Found:
    """Boxes of one image: corners float64 [n, 4] in its pixels, scores [n], labels [n], windows [n, 4] (the corners of the
    tile of each), is_fragment [n].
    """

    corners: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    windows: np.ndarray
    is_fragment: np.ndarray

    def take(self, chosen: np.ndarray) -> Found:
        """The chosen ones, in their order."""
        return Found(*(values[chosen] for values in vars(self).values()))

    @property
    def weights(self) -> np.ndarray:
        """What their scores count where boxes are ordered."""
        return np.where(self.is_fragment, PARTIAL, 1.0)

    @property
    def order(self) -> np.ndarray:
        """Indices by descending priority. Ties are broken by the boxes themselves, not by their order."""
        priority = self.weights * self.scores
        return np.lexsort((*self.windows.T, *self.corners.T, -self.scores, -priority))


Row = tuple[np.ndarray, float, int, bool, bool, np.ndarray]
"""An object's corners, score, label, is_part, is_joined and window."""


@dataclass
class Objects:
    """Boxes of one image, one for each object: corners [n, 4], scores [n], labels [n]; is_part [n]: a fragment alone;
    is_joined [n]: around several; windows [n, 4]: the tile of the box that the object began with.
    """

    corners: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    is_part: np.ndarray
    is_joined: np.ndarray
    windows: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Objects:
        columns = list(zip(*rows, strict=True)) if rows else [()] * 6
        return cls(
            np.array(columns[0], np.float64).reshape(-1, 4),
            np.array(columns[1], np.float64),
            np.array(columns[2], np.int64),
            np.array(columns[3], bool),
            np.array(columns[4], bool),
            np.array(columns[5], np.float64).reshape(-1, 4),
        )

    def take(self, chosen: np.ndarray) -> Objects:
        """The chosen ones, in their order."""
        return Objects(*(values[chosen] for values in vars(self).values()))


def collect(tiles: Sequence[tuple[Window, Mapping[str, Any]]], size: tuple[int, int]) -> Found:
    """All boxes in the pixels of the image, sorted by tile."""
    corners, windows = [np.empty((0, 4))], [np.empty((0, 4))]
    scores: list[float] = []
    labels: list[int] = []
    for window, detections in sorted(tiles, key=lambda one: one[0].corners):
        boxes = np.array(detections["boxes"], np.float64).reshape(-1, 4)
        boxes[:, :2] += window.left, window.top
        boxes[:, 2:] += boxes[:, :2]
        corners.append(boxes)
        scores += detections["scores"]
        labels += detections["labels"]
        windows.append(np.tile(np.array(window.corners, np.float64), (len(boxes), 1)))
    all_corners, all_windows = np.concatenate(corners), np.concatenate(windows)
    is_fragment = touches(all_corners, all_windows, size)
    return Found(all_corners, np.array(scores, np.float64), np.array(labels, np.int64), all_windows, is_fragment)


def touches(corners: np.ndarray, windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which boxes end at a border of their tile that is not one of the image: bool [n]."""
    width, height = size
    near = precision(corners, windows)
    begins = (corners[:, :2] - windows[:, :2] <= near) & (windows[:, :2] > 0)
    ends = (windows[:, 2:] - corners[:, 2:] <= near) & (windows[:, 2:] < [width, height])
    return (begins | ends).any(axis=1)


def precision(corners: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """How exactly the sides of boxes are known, in pixels along x and y: [n, 2]."""
    sides, extent = windows[:, 2:] - windows[:, :2], corners[..., 2:] - corners[..., :2]
    return np.maximum(np.maximum(EDGE_OF_TILE * sides, EDGE_OF_BOX * extent), EDGE_PIXELS)
