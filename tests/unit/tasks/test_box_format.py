"""Proves that boxes as shares of the image, or as corners, are refused as a split, and other sets are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.errors import UserError
from finetune.tasks.object_detection.box_format import check_box_format
from tests.tables import MemoryTable


def table(*boxes: Any, **row: Any) -> MemoryTable:
    rows = [{"objects": {"bbox": [box], "category": ["a"]}, "width": 60, "height": 40, **row} for box in boxes]
    return MemoryTable("train", [{"objects": {"bbox": [], "category": []}}, *rows])


def test_shares_of_the_image_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"train row 1: train: no box is larger than one pixel.* of the 2 boxes"
    ) as told:
        check_box_format(table([0.1, 0.1, 0.3, 0.3], [0, 0, 1, 1]))
    assert "options.box_format: normalized_cxcywh" in str(told.value)


@pytest.mark.parametrize("sizes", [{}, {"width": None, "height": None, "image": Image.new("RGB", (60, 40))}])
def test_corners_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"train row 2: train: 1 of 2 boxes leave their image .* as \[left, top, right, bottom\]"
    ):
        check_box_format(table([5, 5, 20, 20], [30, 10, 50, 39], **sizes))


@pytest.mark.parametrize(
    "boxes",
    [
        [[5, 5, 20, 20], [30, 10, 20, 30]],  # the second has width < x
        [[0, 0, 60, 40]],
        [[5, 5, 20, 20]],  # one box alone shows nothing
        [[5, 5, 20, 20], [30, 10, 70, 60]],  # outside as either
        [[0.1, 0.1, 0.3, 0.3], [5, 5, 3, 3]],  # some of them no shares: the rows are bad by themselves
        [],
        ["no box", None, [1, 2, 3]],
    ],
)
def test_other_sets_are_not_suspected(boxes: list[Any]) -> None:
    assert check_box_format(table(*boxes)) == ""


def test_many_boxes_that_could_be_both_are_reported() -> None:
    boxes = np.random.default_rng(0).uniform(1, 9, (20, 2))
    note = check_box_format(table(*[[x, y, x + 9, y + 9] for x, y in boxes.tolist()]))
    assert note.startswith("train: all 20 boxes could be [left, top, right, bottom] as well")
