"""Proves that boxes frame the pixels on which they were drawn, whatever EXIF data and later resizing did to the image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.bad_rows import BadRow
from finetune.data.images import Picture, read_image
from finetune.data.labels import Labels
from finetune.tasks.vision.boxes import CLIPPED, REPEATED, check_objects
from finetune.tasks.vision.frames import SCALED, TURNED, UNDECIDED, find_frame

BOX = [4.0, 6.0, 20.0, 8.0]  # x, y, width, height in the stored image of 64 x 48


def picture(orientation: int, size: tuple[int, int] = (64, 48)) -> Picture:
    """A black image, white inside of the box as drawn on the stored pixels, with an EXIF orientation."""
    pixels = np.zeros((48, 64), np.uint8)
    pixels[6:14, 4:24] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(file, "PNG", exif=exif)
    return read_image(file.getvalue())


def corners(row: dict[str, Any], seen: Picture, box: list[float] = BOX) -> list[int]:
    objects = check_objects({"bbox": [box], "category": ["a"]}, Labels(["a"]), find_frame(row, seen))
    assert not objects.bad, objects.bad
    return [round(value) for value in objects.corners[0]]


def white(seen: Picture) -> list[int]:
    box = seen.rgb.convert("L").getbbox()
    assert box is not None
    return list(box)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_drawn_before_the_rotation_turn_with_the_image(orientation: int) -> None:
    seen = picture(orientation)
    assert seen.rgb.size == (48, 64)
    assert corners({"width": 64, "height": 48}, seen) == white(seen)
    assert find_frame({"width": 64, "height": 48}, seen).notices == (TURNED,)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_turn_is_that_of_the_pixels(orientation: int) -> None:
    """Also of those that keep the size, which find_frame cannot recognize: the arithmetic is right for all eight."""
    from dataclasses import replace

    seen = picture(orientation)
    frame = replace(find_frame({}, picture(1)), orientation=orientation)
    assert [round(value) for value in frame.to_upright([4, 6, 24, 14])] == white(seen)


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_boxes_drawn_after_the_rotation_stay(orientation: int) -> None:
    seen = picture(orientation)
    width, height = seen.rgb.size
    box = white(seen)
    drawn = [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
    frame = find_frame({"width": width, "height": height}, seen)
    assert corners({"width": width, "height": height}, seen, drawn) == box and frame.notices == ()


@pytest.mark.parametrize(("orientation", "notices"), [(1, (SCALED,)), (6, (SCALED,)), (8, (SCALED,))])
@pytest.mark.parametrize("size", [(32, 24), (128, 96)])
def test_images_resized_after_labelling(orientation: int, notices: tuple[str, ...], size: tuple[int, int]) -> None:
    """width and height say 64 x 48, before any rotation; the file is half or twice as large."""
    seen = picture(orientation, size)
    row = {"width": 64, "height": 48.0}
    assert corners(row, seen) == white(seen) and find_frame(row, seen).notices == notices


def test_resizing_rounds() -> None:
    seen = Picture(Image.new("RGB", (100, 33)), (100, 33), 1, ())
    assert find_frame({"width": 1000, "height": 333}, seen).notices == (SCALED,)


@pytest.mark.parametrize(
    ("row", "orientation", "notices"),
    [
        ({}, 6, (UNDECIDED,)),
        ({"width": 0, "height": None}, 6, (UNDECIDED,)),
        ({"width": 64, "height": 48}, 3, (UNDECIDED,)),
    ],
)
def test_where_nothing_says_which_pixels_it_is_reported(row: dict[str, Any], orientation: int, notices: Any) -> None:
    seen = picture(orientation)
    frame = find_frame(row, seen)
    assert frame.notices == notices and frame.orientation == 1 and (frame.width, frame.height) == seen.rgb.size


@pytest.mark.parametrize("size", [(48, 48), (24, 24)])
def test_square_images_are_ambiguous(size: tuple[int, int]) -> None:
    notices = find_frame({"width": 48, "height": 48}, picture(6, size)).notices
    assert notices == ((UNDECIDED,) if size == (48, 48) else (SCALED, UNDECIDED))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"width": 100, "height": 50}, "are 100 x 50 pixels, but the image has 64 x 48, which is a different ratio"),
        ({"width": 48, "height": 64}, "a different ratio"),
        ({"width": "64", "height": 48}, "width is '64'"),
        ({"width": 64.5, "height": 48}, "width is 64.5"),
        ({"width": 64, "height": -48}, "height is -48"),
    ],
)
def test_sizes_that_contradict_the_image_are_bad_rows(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        find_frame(row, picture(1))


@pytest.mark.parametrize(
    ("form", "box"),
    [
        ("xywh", BOX),
        ("xyxy", [4, 6, 24, 14]),
        ("cxcywh", [14, 10, 20, 8]),
        ("normalized_xywh", [4 / 64, 6 / 48, 20 / 64, 8 / 48]),
        ("normalized_xyxy", [4 / 64, 6 / 48, 24 / 64, 14 / 48]),
        ("normalized_cxcywh", [14 / 64, 10 / 48, 20 / 64, 8 / 48]),
    ],
)
def test_every_box_format(form: str, box: list[float]) -> None:
    seen = picture(1)
    objects = check_objects({"bbox": [box], "category": ["a"]}, Labels(["a"]), find_frame({}, seen), form)
    assert objects.corners[0] == pytest.approx(white(seen)) and not objects.notices


def test_what_is_cut_or_repeated_is_reported() -> None:
    frame = find_frame({}, picture(1))
    objects = check_objects({"bbox": [BOX, [50, 40, 15, 8], BOX], "category": ["a"] * 3}, Labels(["a"]), frame)
    assert objects.notices == [CLIPPED, REPEATED] and len(objects.corners) == 3


@pytest.mark.parametrize(
    ("objects", "why"),
    [
        ({"bbox": 5, "category": ["a"]}, "bbox of objects is a list"),
        ({"bbox": "1 2 3 4", "category": ["a"]}, "bbox of objects is a list"),
        ({"bbox": [BOX], "category": "a"}, "category of objects is a list"),
        ({"bbox": [BOX], "category": ["a", "b"]}, "1 boxes and 2 categories"),
        ({"bbox": [BOX, BOX], "category": ["a", "b"], "iscrowd": [1]}, "2 boxes and 1 values of iscrowd"),
        ("[]", "not str"),
        ([1], "no list of"),
    ],
)
def test_objects_of_other_forms_are_bad_rows(objects: Any, why: str) -> None:
    with pytest.raises(BadRow, match=why):
        check_objects(objects, Labels(["a"]), find_frame({}, picture(1)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"iscrowd": ["no"]}, "iscrowd is 'no'"),
        ({"bbox": [None]}, "is not"),
        ({"bbox": [["x" * 900] * 4]}, "holds a value that is not a number"),
        ({"bbox": [[0.1, 0.1, 0.3, 0.3]]}, "not larger than one pixel; for fractions of the image"),
        ({"category": [["a"]]}, "label"),
    ],
)
def test_one_bad_object_is_named(change: dict[str, Any], why: str) -> None:
    columns = {"bbox": [BOX], "category": ["a"], "id": [77], **change}
    objects = check_objects(columns, Labels(["a"]), find_frame({}, picture(1)))
    assert [name for name, _ in objects.bad] == ["77"] and why in objects.bad[0][1] and len(objects.bad[0][1]) < 300
    assert not objects.corners
