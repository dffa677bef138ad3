"""Boxes of tiles become one list: as SAHI's own functions say where their rules are ours, and better where they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sahi.postprocess._numpy_backend import greedy_nmm_numpy, nms_numpy

from benchmarks.inference.planted_objects import CLEAR, Counts, compare, detect, merge_with_sahi, plant
from finetune.inference.pieces.box_merging import iou, merge_boxes
from finetune.inference.pieces.tiles import Window, cut_image

LEFT, RIGHT = Window(0, 0, 640, 640, 1.0), Window(512, 0, 1152, 640, 1.0)  # of an image of 1152 x 640
SIZE = (1152, 640)


def found(*boxes: tuple[float, float, float, float], scores: Any = None, labels: Any = None) -> dict[str, list[Any]]:
    """Detections in a tile's pixels: left, top, width, height."""
    return {
        "boxes": [list(box) for box in boxes],
        "labels": [0] * len(boxes) if labels is None else list(labels),
        "scores": [0.9] * len(boxes) if scores is None else list(scores),
    }


@pytest.mark.parametrize("seed", range(10))
def test_complete_boxes_are_suppressed_as_by_sahi(seed: int) -> None:
    """No box touches a border: per class, the boxes that SAHI's NMS keeps, in its order."""
    rng = np.random.default_rng(seed)
    count = 120
    corner, sides = rng.integers(30, 300, (count, 2)), rng.integers(20, 200, (count, 2))
    scores, labels = rng.permutation(count) / count, rng.integers(0, 3, count)
    boxes = np.concatenate([corner, sides], axis=1).astype(float)
    table = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:], scores[:, None], labels[:, None]], axis=1)
    kept = []
    for label in range(3):
        own = np.flatnonzero(labels == label)
        kept += [int(own[index]) for index in nms_numpy(table[own], "IOU", 0.5)]
    kept.sort(key=lambda index: -scores[index])
    merged = merge_boxes(
        [(Window(0, 0, 1000, 1000, 1.0), found(*boxes, scores=scores, labels=labels))], (1000, 1000), 999
    )
    assert merged["boxes"] == boxes[kept].tolist() and merged["scores"] == scores[kept].tolist()
    assert 3 < len(kept) < count, "some are suppressed, and some are not"


@pytest.mark.parametrize("seed", range(20))
def test_fragments_are_joined_as_by_sahi(seed: int) -> None:
    """Objects apart from each other that the border cuts, more than half of each fragment in both tiles."""
    rng = np.random.default_rng(seed)
    parts: list[list[tuple[float, float, float, float]]] = [[], []]
    table = []
    for row in range(4):
        left, right = 512 - rng.integers(10, 100), 640 + rng.integers(10, 100)
        top, high = 20 + 150 * row + rng.integers(0, 9), rng.integers(60, 120)
        jitter = rng.integers(-4, 5, 4)
        parts[0].append((left, top, 640 - left, high))
        parts[1].append((0, top + jitter[0], right - 512, high + jitter[1]))
        table += [[left, top, 640, top + high], [512, top + jitter[0], right, top + jitter[0] + high + jitter[1]]]
    scores = rng.uniform(0.6, 0.9, 8).round(4)
    given = np.concatenate([np.array(table, float), scores[:, None], np.zeros((8, 1))], axis=1)
    expected = []
    for keeper, others in greedy_nmm_numpy(given, "IOS", 0.5).items():
        group = given[[keeper, *others]]
        low, high = group[:, :2].min(axis=0), group[:, 2:4].max(axis=0)
        expected.append((group[:, 4].max(), [*low.tolist(), *(high - low).tolist()]))
    expected.sort(key=lambda one: -one[0])
    tiles = [(LEFT, found(*parts[0], scores=scores[::2])), (RIGHT, found(*parts[1], scores=scores[1::2]))]
    merged = merge_boxes(tiles, SIZE, 100)
    assert merged["boxes"] == [box for _, box in expected] and merged["scores"] == [score for score, _ in expected]
    assert len(expected) == 4


@pytest.mark.parametrize("seed", range(6))
def test_planted_objects_come_out_as_by_sahi(seed: int) -> None:
    """Objects apart, with the whole image: the same objects, and nearly the same boxes."""
    rng = np.random.default_rng([7, seed])
    size = (1500, 1100)
    scene = plant(rng, size, 640, 0.2)
    tiles = [(window, detect(rng, scene, window)) for window in cut_image(*size, 640, 0.2, whole_image=True)]
    ours, theirs = merge_boxes(tiles, size, 1000), merge_with_sahi(tiles, size, 1000)
    clear = [box for box, score in zip(ours["boxes"], ours["scores"], strict=True) if score >= CLEAR]
    assert len(clear) == len(theirs["boxes"]) == len(scene.labels)
    for box in clear:
        assert iou(corners(box)[0], corners(*theirs["boxes"])).max() > 0.8


def corners(*boxes: list[float]) -> np.ndarray:
    """Left, top, width, height -> left, top, right, bottom."""
    table = np.array(boxes, float)
    return np.concatenate([table[:, :2], table[:, :2] + table[:, 2:]], axis=1)


@pytest.mark.parametrize("crowded", [False, True])
def test_planted_objects_are_all_found_and_once(crowded: bool) -> None:
    """recall: at least the whole image's. duplicates: less than 1 percent, also where objects cover each other."""
    counts = compare(6, 3, crowded=crowded)
    ours, whole = counts["tiles and the whole image"], counts["the whole image alone"]
    assert whole.recall < 0.9 < 0.995 < ours.recall
    assert ours.duplicates < 0.01 * ours.objects and ours.wrong == 0
    assert counts["tiles and the whole image, not merged"].duplicates > ours.objects, "there is something to merge"
    alone = counts["tiles alone"]
    assert alone.recall > whole.recall and alone.duplicates < 0.02 * alone.objects
    sahi = counts["tiles and the whole image, SAHI's merge"]
    assert (ours.recall, -ours.duplicates) >= (sahi.recall, -sahi.duplicates)


def test_a_small_object_before_a_large_one_stays() -> None:
    """Both are cut by the border. SAHI's rule takes the small one for a part of the large one."""
    large, small = [(300, 100, 340, 400), (0, 100, 500, 400)], [(560, 250, 80, 60), (48, 250, 200, 60)]
    tiles = [(LEFT, found(large[0], small[0])), (RIGHT, found(large[1], small[1]))]
    assert sorted(merge_boxes(tiles, SIZE, 10)["boxes"]) == [[300, 100, 712, 400], [560, 250, 200, 60]]
    theirs = merge_with_sahi(tiles, SIZE, 10)["boxes"]
    assert iou(np.array([560.0, 250, 760, 310]), corners(*theirs)).max() < 0.5


def test_an_object_over_three_tiles_is_one() -> None:
    """Longer than a tile, so its fragments share little of each other: SAHI's rule leaves them apart."""
    windows = cut_image(1664, 640, 640, 0.2, whole_image=False)
    assert len(windows) == 3
    parts = [found((200, 300, 440, 80)), found((0, 300, 640, 80), scores=[0.8]), found((0, 300, 300, 80), scores=[0.7])]
    tiles = list(zip(windows, parts, strict=True))
    merged = merge_boxes(tiles, (1664, 640), 10)
    assert merged == {"boxes": [[200, 300, 1124, 80]], "labels": [0], "scores": [0.9]}
    assert len(merge_with_sahi(tiles, (1664, 640), 10)["boxes"]) == 3


def test_a_box_of_low_score_does_not_distort_another() -> None:
    """A hundred boxes of low score come with every image of a detector of the DETR family."""
    tiles = [
        (LEFT, found((540, 200, 100, 100))),
        (RIGHT, found((28, 200, 300, 100), (0, 150, 600, 400), scores=[0.85, 0.03])),
        (Window(0, 0, *SIZE, 1.0), found((20, 20, 1100, 600), scores=[0.02])),
    ]
    merged = merge_boxes(tiles, SIZE, 10)
    assert merged["boxes"][0] == [540, 200, 300, 100] and merged["scores"][0] == 0.9


def test_classes_are_merged_apart() -> None:
    tiles = [(LEFT, found((520, 200, 90, 100), labels=[0])), (RIGHT, found((8, 200, 90, 100), labels=[1]))]
    assert sorted(merge_boxes(tiles, SIZE, 10)["labels"]) == [0, 1]


def test_a_fragment_alone_says_less_of_the_class() -> None:
    """Half of a circle looks like something else. A box of its own beside the whole one stays."""
    cut, whole, apart = (580, 200, 60, 100), (48, 200, 90, 100), (560, 400, 80, 100)
    tiles = [(LEFT, found(cut, apart, labels=[0, 0])), (RIGHT, found(whole, labels=[1], scores=[0.6]))]
    merged = merge_boxes(tiles, SIZE, 10)
    assert list(zip(merged["boxes"], merged["labels"], strict=True)) == [([*apart], 0), ([560, 200, 90, 100], 1)]
    tiles[1] = (RIGHT, found(whole, labels=[1], scores=[0.4]))
    assert len(merge_boxes(tiles, SIZE, 10)["boxes"]) == 3, "a much better fragment stays"


def test_a_sliver_is_compared_no_more_exactly_than_edges_are_known() -> None:
    """The left tile sees 8 pixels of an object, and says 20; a neighbor whose box begins there stays."""
    tiles = [(LEFT, found((620, 200, 20, 200))), (RIGHT, found((120, 205, 300, 190)))]
    assert merge_boxes(tiles, SIZE, 10)["boxes"] == [[632, 205, 300, 190]]
    tiles = [(LEFT, found((580, 200, 60, 200))), (RIGHT, found((120, 205, 300, 190)))]
    assert len(merge_boxes(tiles, SIZE, 10)["boxes"]) == 2


def test_a_box_that_only_seems_complete_is_a_view_of_a_larger_one() -> None:
    """The left tile's box ends 12 pixels before the border; the others see that the object goes on."""
    middle, right = Window(400, 0, 1040, 640, 1.0), Window(512, 0, 1152, 640, 1.0)
    tiles = [
        (LEFT, found((500, 200, 128, 200), scores=[0.9])),
        (middle, found((102, 200, 538, 200), scores=[0.95])),
        (right, found((0, 200, 600, 200), scores=[0.95])),
    ]
    assert merge_boxes(tiles, SIZE, 10)["boxes"] == [[502, 200, 610, 200]]


def test_fragments_speak_for_the_object_that_they_are_parts_of() -> None:
    """The whole image takes an object and half of its neighborhood for one, which no tile sees as a whole."""
    coarse, cut, rest = (420, 150, 360, 290), (500, 200, 140, 240), (0, 200, 188, 240)
    tiles = [
        (LEFT, found(cut)),
        (RIGHT, found(rest)),
        (Window(0, 0, *SIZE, 1.0), found(coarse, scores=[0.95])),
    ]
    merged = merge_boxes(tiles, SIZE, 10)
    assert merged["boxes"] == [[500, 200, 200, 240]] and merged["scores"] == [0.9]


def test_the_order_of_tiles_and_of_equal_scores_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    scene = plant(rng, (2000, 1500), 640, 0.2, crowded=True)
    tiles = [(window, detect(rng, scene, window)) for window in cut_image(2000, 1500, 640, 0.2, whole_image=True)]
    for _, part in tiles:
        part["scores"][:] = [round(score, 1) for score in part["scores"]]  # type: ignore[index]
    merged = merge_boxes(tiles, (2000, 1500), 200)
    for _ in range(5):
        shuffled = []
        for index in rng.permutation(len(tiles)):
            window, part = tiles[index]
            order = rng.permutation(len(part["scores"]))
            shuffled.append((window, {key: [values[i] for i in order] for key, values in part.items()}))
        assert merge_boxes(shuffled, (2000, 1500), 200) == merged


def test_the_best_boxes_are_kept_and_images_may_hold_none() -> None:
    rng = np.random.default_rng(2)
    scene = plant(rng, (1500, 1100), 640, 0.2)
    tiles = [(window, detect(rng, scene, window)) for window in cut_image(1500, 1100, 640, 0.2, whole_image=True)]
    every = merge_boxes(tiles, (1500, 1100), 100_000)
    for limit in (1, 20, 100):
        best = merge_boxes(tiles, (1500, 1100), limit)
        assert best["scores"] == every["scores"][:limit] and best["boxes"] == every["boxes"][:limit]
    assert merge_boxes([(LEFT, found()), (RIGHT, found())], SIZE, 10) == {"boxes": [], "labels": [], "scores": []}


def test_duplicates_are_counted() -> None:
    """The measure itself: one object, three boxes on it and one elsewhere."""
    rng = np.random.default_rng(1)
    scene = plant(rng, (1500, 1100), 640, 0.2)
    counts, label = Counts(), [int(scene.labels[0])]
    left, top, right, bottom = scene.corners[0]
    wide, high = right - left, bottom - top
    box, half = [left, top, wide, high], [left, top, wide / 2.5, high]
    counts.add(scene, {"boxes": [box, half, box, [0, 0, 2, 2]], "labels": label * 4, "scores": [0.9, 0.8, 0.7, 0.6]})
    assert (counts.found, counts.duplicates, counts.wrong) == (1, 2, 1)
