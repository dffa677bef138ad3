"""Proves that a COCO file whose ids, names or paths contradict each other is refused or told, and never read by guessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data.bad_rows import BadRow, UnusedCategory
from finetune.data.formats.annotations import NOTICES
from finetune.data.formats.coco import REPEATED_ID, read_coco
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def image(number: Any, name: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png" if name is None else name, **more}


def box(number: int, image_id: Any, category: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": [1, 1, 9, 9], **more}


def read(
    folder: Path, images: list[Any], annotations: list[Any], categories: Any = CATEGORIES, folder_of_images: str = ""
) -> list[Any]:
    """Rows, and the reasons of bad ones."""
    path = folder / "_annotations.coco.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
    rows = read_coco(path, SourceSection(source=str(folder), images=folder_of_images))
    return [str(row) if isinstance(row, BadRow) else row for _, row in rows if not isinstance(row, UnusedCategory)]


def test_a_row_has_the_sizes_of_the_file(tmp_path: Path) -> None:
    rows = read(tmp_path, [image(1, width=64, height=48), image(2)], [box(7, 1, iscrowd=True)])
    assert rows[0] == {
        "image": str(tmp_path / "1.png"),
        "image_id": 1,
        "width": 64,
        "height": 48,
        "objects": {"bbox": [[1, 1, 9, 9]], "category": ["cat"], "id": [7], "iscrowd": [1]},
    }
    assert "width" not in rows[1] and rows[1]["objects"]["bbox"] == []


@pytest.mark.parametrize(
    ("images", "annotations", "expected"),
    [
        ([image(1), image(1, "b.png"), image(2)], [], ["1.png: several images have the id 1", "b.png: several", None]),
        (
            [image(1, "a.png"), image(2, "./a.png"), image(3)],
            [],
            ["a.png: the file is listed 2 times", "./a.png: the", None],
        ),
        ([image(1)], [box(7, 1, [1])], ["annotation 7: there is no category [1]"]),
        ([image(1)], [box(7, 1, True)], ["annotation 7: there is no category True"]),
        ([image(1)], [box(7, 1, 1.5)], ["annotation 7: there is no category 1.5"]),
        ([image(1)], [box(7, 1, 1.0)], [None]),
        ([image(1)], [box(7, 1, "1")], ["annotation 7: there is no category '1'"]),
        ([image(1)], [box(7, [1])], ["annotation 7: there is no image [1]", None]),
        ([image(1)], [box(7, "1")], ["annotation 7: there is no image '1'", None]),
        ([image([1])], [box(7, [1])], [None]),
        (
            [image(1)],
            [{**box(7, 1, segmentation={"counts": "x"}), "bbox": None}],
            ["no bbox; a segmentation alone is not"],
        ),
    ],
    ids=range(11),
)
def test_ids_that_name_nothing_or_several_things(
    tmp_path: Path, images: list[Any], annotations: list[Any], expected: list[str | None]
) -> None:
    rows = read(tmp_path, images, annotations)
    assert len(rows) == len(expected)
    for row, why in zip(rows, expected, strict=True):
        assert isinstance(row, dict) if why is None else why in row


def test_annotation_ids_that_occur_twice_are_reported(tmp_path: Path) -> None:
    rows = read(tmp_path, [image(1), image(2), image(3)], [box(7, 1), box(7, 2), box(8, 3), box(None, 3), box(None, 3)])
    assert [row.get(NOTICES) for row in rows] == [[REPEATED_ID], [REPEATED_ID], None]


@pytest.mark.parametrize(
    ("categories", "why"),
    [
        ([{"id": 1, "name": None}, {"id": 2, "name": "b"}], r"categories\[0\] has the name None"),
        ([{"id": 1, "name": " "}, {"id": 2, "name": "b"}], r"categories\[0\] has the name ' '"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}, {"id": 2, "name": "c"}], "id 1 has two names, 'a' and 'b'"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "categories 1 and 2 are both named 'a'"),
    ],
)
def test_categories_that_cannot_be_told_apart(tmp_path: Path, categories: list[Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        read(tmp_path, [image(1)], [box(7, 1, 1), box(8, 1, 2)], categories)


def test_a_name_that_occurs_twice_but_is_used_once(tmp_path: Path) -> None:
    """Roboflow writes the set's name as category 0, and often also as the name of a class."""
    rows = read(
        tmp_path, [image(1), image(2)], [box(7, 1, 1)], [{"id": 0, "name": "cells"}, {"id": 1, "name": "cells "}]
    )
    assert rows[0]["objects"]["category"] == ["cells "]
    assert rows[0][NOTICES] == ["the categories 0, 1 are all named 'cells'; boxes of this file are of 1 alone"]
    assert NOTICES not in rows[1]


@pytest.mark.parametrize("name", ["/etc/passwd.png", "../b.png", "a/../../b.png"])
def test_images_outside_of_the_folder_are_refused_unless_the_folder_is_given(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(UserError, match=r"images\[0\] names a file outside of the image folder") as told:
        read(inner, [image(1, name)], [])
    assert "Set `images:`" in str(told.value)
    rows = read(inner, [image(1, name)], [], folder_of_images="/" if name.startswith("/") else str(tmp_path))
    assert Path(rows[0]["image"]).resolve() == (inner / name).resolve()


def test_names_with_dots_that_stay_inside(tmp_path: Path) -> None:
    assert read(tmp_path, [image(1, "a/../b.png"), image(2, str(tmp_path / "c.png"))], [])[1]["image"].endswith("c.png")
    with pytest.raises(UserError, match=r"images\[0\] has the file_name 7"):
        read(tmp_path, [image(1, 7)], [])


def test_categories_without_a_box_come_before_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "_annotations.coco.json"
    categories = [{"id": 0, "name": "animals"}, *CATEGORIES, {"id": 3, "name": "cat"}]
    content = {"images": [image(1)], "annotations": [box(7, 1)], "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
    rows = [row for _, row in read_coco(path, SourceSection(source=str(tmp_path)))]
    assert [row.name for row in rows if isinstance(row, UnusedCategory)] == ["animals", "dog"]
    assert [isinstance(row, UnusedCategory) for row in rows] == [True, True, False]
