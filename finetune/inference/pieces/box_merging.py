"""Makes one list of boxes of those that were found in the tiles of an image.

First the tiles alone, which see every place at the highest resolution. A box that ends at a tile's inner border is a fragment:
the tile may have cut its object; all others are complete. Two boxes are of one object if they agree on what both of their tiles
see: if their intersection over union (IoU) is 0.5 or more after each was cut to the other's tile, which changes nothing where
both tiles show both boxes (NMS). Per class, the best box first:

    complete, larger       a complete box that is only the view that its tile has of a larger one, complete or fragment, goes
    complete, complete     the better one stays
    complete, fragment     also the same from half of the fragment on: the complete box stays. Its edges are known no better
                           than where a box counts as ending at a border, which decides about slivers of objects
    fragment, fragment     they are joined to the box around both, and then compared with further tiles. So objects larger than
                           the overlap become one box, and a small object before a large one stays apart, which intersection
                           over smaller area alone joins

A fragment that is joined to nothing shows less of its object's class than a box of the whole: it goes if it is the view that
its tile has of a complete or joined box of another class.

Then the boxes of the whole image, which is coarser, for what tiles do not show. One that a tile shows as a whole goes if a
complete or joined box covers half of the smaller of the two, or has an IoU of 0.5 with it and another class. So does one that
is no larger than a tile, and a larger one goes if such boxes together cover half of it, whatever their classes, as detectors
take several small objects for one: unless fragments in tiles that cover half of it say the same of what they see. A fragment
speaks for the box that agrees with it most: not for a coarse one beside the object that it is a part of. A box that
stays takes the place of the fragments of which it covers half.

Fragments count half when boxes are ordered, so that a complete box wins unless its score is below half of theirs; and no box
stretches or replaces another whose score is more than twice its own. So boxes of low score, of which detectors of the DETR
family give a hundred per image, neither replace nor distort good ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.inference.pieces.found_boxes import PARTIAL, SAME, Found, Objects, Row, collect, precision, touches
from finetune.inference.pieces.geometry import area, clip, covered_share, intersection, iou
from finetune.inference.pieces.tiles import Window
from finetune.tasks.vision.boxes import xywh

COMPARED = 20  # boxes that are compared, for each that is asked for: bounds the time where tiles are many


def merge_boxes(
    tiles: Sequence[tuple[Window, Mapping[str, Any]]], size: tuple[int, int], limit: int
) -> dict[str, list[Any]]:
    """{"boxes": [[left, top, width, height]], "labels", "scores"} of an image, by descending score; at most `limit`.

    tiles: each window with its detections in the same form, in the window's own pixels. size: width and height of the
    image. The order of the tiles does not matter.
    """
    whole = (0, 0, *size)
    found = _best(collect([one for one in tiles if one[0].corners != whole], size), limit)
    rows = [row for label in np.unique(found.labels) for row in _merge_class(found.take(found.labels == label), limit)]
    coarse = _best(collect([one for one in tiles if one[0].corners == whole], size), limit)
    evidence = Evidence(
        found, np.array([w.corners for w, _ in tiles if w.corners != whole], np.float64).reshape(-1, 4), size
    )
    objects = _add_whole(_drop_other_classes(Objects.of(rows)), coarse, evidence)
    order = np.lexsort((*objects.corners.T[::-1], objects.labels, -objects.scores))[:limit]
    return {
        "boxes": xywh(objects.corners[order].tolist()),
        "labels": objects.labels[order].tolist(),
        "scores": objects.scores[order].tolist(),
    }


def _best(found: Found, limit: int) -> Found:
    return found.take(np.argsort(-found.scores, kind="stable")[: COMPARED * limit])


def _merge_class(found: Found, limit: int) -> list[Row]:
    """The objects of one class, as rows of Objects: at least the `limit` best that are no fragments alone, and those that a box
    of the whole image that is among them is compared with.
    """
    rest, best = found.take(found.order), list[float]()
    merged: list[Row] = []
    while len(rest.scores):
        most = rest.scores[0] * rest.weights[0] / PARTIAL  # no box behind it has more
        if len(best) == limit and PARTIAL * PARTIAL * best[0] >= most:
            break
        first, rest = rest.take(np.array([0])), rest.take(np.arange(1, len(rest.scores)))
        is_joined = False
        if first.is_fragment[0]:
            corners, is_same, is_joined = _join(first, rest)
        else:
            corners = first.corners[0]
            agree = _agreement(corners, first.windows[0], rest) >= SAME
            if _is_view(first, rest, agree):
                continue
            is_same = agree | (_covered(corners, rest) & rest.is_fragment)
        score = max([float(first.scores[0]), *rest.scores[is_same].tolist()])
        is_part = bool(first.is_fragment[0]) and not is_joined
        merged.append((corners, score, int(first.labels[0]), is_part, is_joined, first.windows[0]))
        if not is_part:  # which may be dropped
            heapq.heappush(best, score)
        if len(best) > limit:
            heapq.heappop(best)
        rest = rest.take(~is_same)
    return merged


def _is_view(first: Found, rest: Found, is_same: np.ndarray) -> bool:
    """Whether a complete box is what its tile sees of a larger one, which is as good."""
    larger = is_same & (iou(first.corners[0], rest.corners) < SAME)
    larger &= area(rest.corners) > area(first.corners[0])
    return bool((larger & (rest.scores >= PARTIAL * first.scores[0])).any())


def _join(first: Found, rest: Found) -> tuple[np.ndarray, np.ndarray, bool]:
    """(corners around a fragment and those of its object, which of `rest` are of the same object: bool [n], whether there
    are several).
    """
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
    is_same |= ~rest.is_fragment & (iou(clip(corners, rest.windows), rest.corners) >= SAME)
    return corners, is_same, len(seen) > 1


def _drop_other_classes(objects: Objects) -> Objects:
    """Without the fragments alone that are what their tile sees of an object of another class."""
    whole = objects.take(~objects.is_part)
    kept = ~objects.is_part
    for index in np.flatnonzero(objects.is_part):
        corners, window = objects.corners[index], objects.windows[index]
        others = (whole.labels != objects.labels[index]) & (whole.scores >= PARTIAL * objects.scores[index])
        kept[index] = not (others & (iou(corners, clip(whole.corners, window)) >= SAME)).any()
    return objects.take(kept)


def _add_whole(objects: Objects, found: Found, evidence: Evidence) -> Objects:
    """The objects of the tiles and those that only the whole image shows. found: the boxes of the whole image."""
    added: list[Row] = []
    stays = np.ones(len(objects.scores), bool)
    rest = found.take(found.order)
    while len(rest.scores):
        corners, score, label = rest.corners[0], float(rest.scores[0]), int(rest.labels[0])
        is_same = (rest.labels == label) & (iou(corners, rest.corners) >= SAME)
        rest = rest.take(~is_same & (np.arange(len(is_same)) > 0))
        same = objects.labels == label
        twin = same & (iou(corners, objects.corners) >= SAME)
        good = stays & ~objects.is_part & (objects.scores >= PARTIAL * score)
        if evidence.shows(corners, score, label, objects, good):
            objects.scores[twin & good] = np.maximum(objects.scores[twin & good], score)
            continue
        parts = objects.is_part if evidence.is_small(corners) else objects.is_part | objects.is_joined
        covered = intersection(corners, objects.corners) / area(objects.corners) >= SAME
        gone = stays & (twin | (same & parts & covered)) & (score >= PARTIAL * objects.scores)
        added.append((corners, max([score, *objects.scores[gone].tolist()]), label, False, False, corners))
        stays &= ~gone
    pairs = zip(vars(objects.take(stays)).values(), vars(Objects.of(added)).values(), strict=True)
    return Objects(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class Evidence:
    """What the tiles of an image say of a box of the whole image. found: their boxes. windows [n, 4]: their corners."""

    found: Found
    windows: np.ndarray
    size: tuple[int, int]

    def is_small(self, corners: np.ndarray) -> bool:
        """Whether a box is no larger than a tile."""
        sides = self.windows[:, 2:] - self.windows[:, :2]
        return bool((corners[2:] - corners[:2] <= sides).all(axis=1).any())

    def shows(self, corners: np.ndarray, score: float, label: int, objects: Objects, good: np.ndarray) -> bool:
        """Whether the good objects are what the box shows, and show it better."""
        inside, areas = intersection(corners, objects.corners), area(objects.corners)
        same, overlap = good & (objects.labels == label), iou(corners, objects.corners)
        small = self.is_small(corners)
        if (same & (overlap >= SAME) & (small | ~objects.is_joined)).any():
            return True
        if not self._fits(corners) and self._is_seen(corners, score, label, objects.corners[same]):
            return False
        if small:
            partial = same & (inside / np.minimum(areas, area(corners)) >= SAME)
            return bool((partial | (good & (overlap >= SAME))).any())
        return covered_share(corners, objects.corners[good]) >= SAME

    def _fits(self, corners: np.ndarray) -> bool:
        """Whether a tile shows the whole box, away from its inner borders."""
        inside = (corners[:2] >= self.windows[:, :2]).all(axis=1) & (corners[2:] <= self.windows[:, 2:]).all(axis=1)
        boxes = np.tile(corners, (len(self.windows), 1))
        return bool((inside & ~touches(boxes, self.windows, self.size)).any())

    def _is_seen(self, corners: np.ndarray, score: float, label: int, others: np.ndarray) -> bool:
        """Whether tiles that cover half of the box have fragments of its class that agree with it, and with none of the
        others more.
        """
        found = self.found
        usable = found.is_fragment & (found.labels == label) & (found.scores >= PARTIAL * score)
        some = found.take(np.flatnonzero(usable))
        agreement = iou(clip(corners, some.windows), some.corners)
        agree = agreement >= SAME
        for other in others:
            agree &= agreement >= iou(clip(other, some.windows), some.corners)
        return bool(agree.any()) and covered_share(corners, np.unique(some.windows[agree], axis=0)) >= SAME


def _covered(corners: np.ndarray, others: Found) -> np.ndarray:
    """Which others are covered by half: bool [n]."""
    slack = precision(corners, others.windows)
    near = np.concatenate([corners[:2] - slack, corners[2:] + slack], axis=1)
    covered: np.ndarray = intersection(near, others.corners) / area(others.corners) >= SAME
    return covered


def _agreement(box: np.ndarray, window: np.ndarray, others: Found) -> np.ndarray:
    """IoU of a box and others, each cut to the other's tile; plain IoU within a tile: [n]."""
    return iou(clip(box, others.windows), clip(others.corners, window))
