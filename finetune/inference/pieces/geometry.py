"""Overlap of boxes, by their corners: left, top, right, bottom, float64."""

from __future__ import annotations

import numpy as np


def clip(corners: np.ndarray, windows: np.ndarray) -> np.ndarray:
    low = np.maximum(corners[..., :2], windows[..., :2])
    high = np.minimum(corners[..., 2:], windows[..., 2:])
    return np.concatenate([low, np.maximum(high, low)], axis=-1)


def iou(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of corners, [4] or [n, 4], with corners [n, 4]: [n]; 0 where both are empty."""
    inter = intersection(one, others)
    union = area(one) + area(others) - inter
    return inter / np.maximum(union, np.finfo(np.float64).tiny)


def intersection(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    low = np.maximum(one[..., :2], others[..., :2])
    high = np.minimum(one[..., 2:], others[..., 2:])
    return np.maximum(high - low, 0).prod(axis=-1)


def area(corners: np.ndarray) -> np.ndarray:
    """Never 0, as it divides."""
    return np.maximum((corners[..., 2:] - corners[..., :2]).prod(axis=-1), np.finfo(np.float64).tiny)


def covered_share(corners: np.ndarray, others: np.ndarray) -> float:
    """The part of a box that others cover together."""
    parts = clip(others, corners[None])
    xs, ys = (np.unique(np.concatenate([parts[:, axis::2].ravel(), corners[axis::2]])) for axis in (0, 1))
    covered = np.zeros((len(xs) - 1, len(ys) - 1), bool)
    for left, top, right, bottom in parts:
        covered[(xs[:-1] >= left) & (xs[1:] <= right), :] |= (ys[:-1] >= top) & (ys[1:] <= bottom)
    return float((covered * np.outer(np.diff(xs), np.diff(ys))).sum() / area(corners))
