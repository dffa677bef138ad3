"""Proves that a YOLO data set is read as Ultralytics lays it out, and that nothing of it is dropped without a word."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.data.bad_rows import BadRow
from finetune.data.formats.annotations import NOTICES
from finetune.data.formats.yolo import KEYPOINTS, POLYGON, label_file, read_asked, read_yolo, yolo_files, yolo_notes
from finetune.data.labels import Labels
from finetune.data.sources.locate import locate
from finetune.errors import UserError
from finetune.recipe.data import SourceSection
from finetune.tasks.object_detection.box_format import check_box_format
from finetune.tasks.vision.boxes import check_objects
from finetune.tasks.vision.frames import Frame
from tests.tables import MemoryTable

YAML = "train: images/train\nval: images/val\nnames:\n  0: disc\n  1: box\n"


def make(folder: Path, labels: dict[str, str | None], text: str = YAML) -> Path:
    """labels: "train/a" -> the text of its file, None for no file."""
    for name, lines in labels.items():
        for kind, suffix in (("images", ".jpg"), ("labels", ".txt")):
            path = (folder / kind / name).with_suffix(suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "images":
                Image.new("RGB", (100, 50)).save(path)
            elif lines is not None:
                path.write_text(lines, encoding="utf-8")
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return folder / "data.yaml"


def rows(path: Path, split: str = "train") -> list[Any]:
    """Rows, and the reasons of bad ones."""
    found = read_yolo(path, SourceSection(source=str(path), split=split))
    return [str(row) if isinstance(row, BadRow) else row for _, row in found]


def test_boxes_are_fractions_and_come_out_in_pixels(tmp_path: Path) -> None:
    path = make(tmp_path, {"train/a": "1 0.5 0.5 0.2 0.4\n\n0 0.1 0.2 0.1 0.2\n", "train/b": "", "train/c": None})
    first, empty, without = rows(path)
    assert first["image"] == str(tmp_path / "images/train/a.jpg") and NOTICES not in first
    assert first["objects"]["category"] == ["box", "disc"] and first["objects"]["id"] == ["line 1", "line 3"]
    assert empty["objects"]["bbox"] == without["objects"]["bbox"] == []
    for option in ("xywh", "xyxy"):  # what the file says is stronger than options.box_format
        objects = check_objects(first["objects"], Labels(["box", "disc"]), Frame(100, 50), option)
        assert not objects.bad
        assert objects.corners == [pytest.approx([40, 15, 60, 35]), pytest.approx([5, 5, 15, 15])]
    assert check_box_format(MemoryTable("t", [first])) == ""
    assert yolo_notes(path, SourceSection(source=str(path), split="train")) == [
        "1 of 3 images have no file of labels and are taken as images without objects (c.jpg)"
    ]


@pytest.mark.parametrize(
    ("line", "box", "notice"),
    [
        ("0 0.1 0.2 0.3 0.2 0.3 0.6", [0.2, 0.4, 0.2, 0.4], POLYGON),
        ("0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6", [0.2, 0.4, 0.2, 0.4], POLYGON),
    ],
)
def test_a_polygon_becomes_the_box_around_it(tmp_path: Path, line: str, box: list[float], notice: str) -> None:
    (row,) = rows(make(tmp_path, {"train/a": line}))
    assert row["objects"]["bbox"] == [pytest.approx(box)] and row[NOTICES] == [notice]


def test_keypoints_are_told(tmp_path: Path) -> None:
    path = make(tmp_path, {"train/a": "0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.2 0.2 1"}, YAML + "kpt_shape: [2, 3]\n")
    (row,) = rows(path)
    assert row["objects"]["bbox"] == [[0.5, 0.5, 0.2, 0.4]] and row[NOTICES] == [KEYPOINTS]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2, but the classes of data.yaml are 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5, but"),
        ("0 0.5 0.5 0.1", "4 numbers, not class, x, y, width, height"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers, not class, x, y, width, height; the last may be a score"),
        ("0 0.5 nan 0.1 0.1", "not a finite number"),
        ("disc 0.5 0.5 0.1 0.1", "holds what is not a number"),
        ("0 0.5 0.5 0.1 0_1", "holds what is not a number"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    path = make(tmp_path, {"train/a": f"0 0.5 0.5 0.1 0.1\n{line}\n"})
    (reason,) = rows(path)
    assert reason.startswith(f"{tmp_path}/labels/train/a.txt:2: ") and why in reason
    asked = [row for _, row in read_asked(path, SourceSection(source=str(path), split="train"))]
    assert asked == [{"image": str(tmp_path / "images/train/a.jpg")}]


def test_the_folder_of_labels() -> None:
    assert label_file(Path("/d/images/train/images/1.x.png")) == Path("/d/images/train/labels/1.x.txt")
    assert label_file(Path("/d/pictures/1.png")) == Path("/d/pictures/1.txt")


def locate_split(path: Path, name: str, **more: Any) -> tuple[str, list[str]]:
    """(key of the split, names of its images)"""
    source = SourceSection(source=str(path), **more)
    located = locate(source, name)
    assert located.format == "yolo" and len(located.files) == 1
    found = read_yolo(located.files[0], located.applied_to(source))
    return located.split, [Path(row["image"]).name for _, row in found if not isinstance(row, BadRow)]


def test_splits_of_the_file_and_of_its_folder(tmp_path: Path) -> None:
    box = "0 0.5 0.5 0.1 0.1"
    path = make(tmp_path, {"train/a": box, "val/b": box, "more/c": box}, YAML + "minival: [images/val, images/more]\n")
    for where in (path, tmp_path):
        assert locate_split(where, "train") == ("train", ["a.jpg"])
        assert locate_split(where, "validation") == ("val", ["b.jpg"])
        assert locate_split(where, "validation", split="minival") == ("minival", ["b.jpg", "c.jpg"])
        with pytest.raises(UserError, match="has no images for test, but for train, val, minival"):
            locate_split(where, "test")
        with pytest.raises(
            UserError, match=r"has several splits.*\n.*give the images of one alone, such as .*images/val"
        ):
            locate_split(where, "")
    located = locate(SourceSection(source=str(path)), "train")
    assert located.left == ("val", "minival") and "train (images/train) is read" in located.notes[0]


def test_where_images_are_looked_for(tmp_path: Path) -> None:
    box = "0 0.5 0.5 0.1 0.1"
    beside = (
        "path: ../elsewhere\ntrain: ../images/train\nval: images/val\nnames: [disc, box]\nnc: 2\n"  # as exporters do
    )
    path = make(tmp_path, {"train/a": box, "val/b": box}, beside)
    assert locate_split(path, "train") == ("train", ["a.jpg"])
    notes = yolo_notes(path, SourceSection(source=str(path), split="train"))
    assert notes == ["`path: ../elsewhere` is not there; images are looked for beside the file"]
    said = locate(SourceSection(source=str(path)), "train").notes[0]
    assert f"train (../images/train, found in {tmp_path / 'images/train'}) is read" in said
    (tmp_path / "list.txt").write_text("./images/val/b.jpg\nimages/train/a.jpg\n")
    path.write_text("train: list.txt\nnames: [disc, box]\n")
    assert locate_split(path, "train") == ("train", ["b.jpg", "a.jpg"])
    files = yolo_files(path, SourceSection(source=str(path), split="train"))
    names = [file.name for file in files]  # all of them count for the cache
    assert names == ["data.yaml", "list.txt", "b.jpg", "a.jpg", "b.txt", "a.txt"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (YAML.replace("images/train", "gone"), "train: gone is not there"),
        (YAML.replace("1: box", "1: disc"), "two classes have the name 'disc'"),
        (YAML + "nc: 3\n", "nc is 3, but names has 2 classes"),
        (YAML.replace("1: box", "x: box"), "'x': 'box' is not the number and the name"),
        (YAML.replace("images/train", "labels/train"), "has no image that can be read"),
    ],
)
def test_a_file_that_contradicts_itself(tmp_path: Path, text: str, why: str) -> None:
    path = make(tmp_path, {"train/a": "0 0.5 0.5 0.1 0.1", "val/b": ""}, text)
    with pytest.raises(UserError, match=why):
        locate_split(path, "train")


def test_labels_that_are_nowhere_and_labels_without_an_image(tmp_path: Path) -> None:
    path = make(tmp_path, {"train/a": None, "train/b": None})
    with pytest.raises(UserError, match="none of 2 images has labels"):
        rows(path)
    (tmp_path / "labels/train/z.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "images/train/c.heic").write_bytes(b"x")
    assert yolo_notes(path, SourceSection(source=str(path), split="train"))[1:] == [
        "1 files of labels have no image and are not used (z.txt)",
        "files beside the images are not read: .heic 1",
    ]


def test_another_yaml_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("task: object_detection\ndata: {train: x}\n")
    with pytest.raises(UserError, match=r"data\.yaml of YOLO needs `names:`"):
        locate(SourceSection(source=str(tmp_path / "recipe.yaml")), "train")


def test_folders_are_walked_once_for_notes_files_and_rows_unless_they_change(tmp_path: Path, monkeypatch) -> None:
    path = make(tmp_path, {"train/a": "0 0.5 0.5 0.1 0.1", "train/deep/b": "0 0.5 0.5 0.1 0.1"})
    (tmp_path / "images/train/empty").mkdir()
    source = SourceSection(source=str(path), split="train")
    folders = [tmp_path / "images/train" / name for name in ("", "deep", "empty")]
    for folder in folders:
        os.utime(folder, (1_000_000_000, 1_000_000_000))
    walked: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: walked.append(folder) or scandir(folder))
    for _ in range(2):
        assert [len(yolo_files(path, source)), len(yolo_notes(path, source)), len(rows(path))] == [5, 0, 2]
    assert [walked.count(folder) for folder in folders] == [1, 1, 1]
    Image.new("RGB", (9, 9)).save(folders[2] / "c.png")
    assert [len(yolo_files(path, source)), len(rows(path))] == [6, 3]
