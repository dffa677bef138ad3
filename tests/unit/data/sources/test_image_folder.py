"""Proves that a folder of images says which files it leaves out, and that no class or split is misread in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.data.sources.image_folder import find_classes, list_images
from finetune.data.sources.tables import open_tables
from finetune.errors import UserError


def fill(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif path.suffix.lower() in (".png", ".jfif", ".jpg"):
            Image.new("RGB", (4, 4)).save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")
        else:
            path.write_bytes(b"x")
    return root


def test_files_that_are_not_read_are_counted(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "a/0.png",
        "a/1.JPG",
        "a/2.jfif",
        "b/0.png",
        "b/1.HEIC",
        "b/2.heic",
        "b/notes.txt",
        "README",
        "a/.x.svg",
    )
    listing = list_images(tmp_path)
    assert [(name, label) for name, label, *_ in listing.images] == [
        ("a/0.png", "a"),
        ("a/1.JPG", "a"),
        ("a/2.jfif", "a"),
        ("b/0.png", "b"),
    ]
    assert listing.notices() == [
        "4 files are left out, of no format that is read: .heic 2, .txt 1, no extension 1 (README)"
    ]
    assert not list_images(fill(tmp_path / "plain", "a/0.png", "a/Thumbs.db", "a/.DS_Store")).notices()


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ("c/IMG_1.HEIC", r"1 of 3 classes have no image that can be read: c \(\.heic 1\)"),
        ("c/.keep", r"no image that can be read: c \(empty\)"),
        ("c/deep/er/x.txt", r"c \(\.txt 1\)"),
    ],
)
def test_a_class_without_images_is_an_error(tmp_path: Path, extra: str, why: str) -> None:
    fill(tmp_path, "a/0.png", "b/0.png", extra)
    for read in (find_classes, list_images):
        with pytest.raises(UserError, match=why):
            read(tmp_path)


def test_a_folder_without_any_image_says_what_it_holds(tmp_path: Path) -> None:
    fill(tmp_path, "a/0.heic", "b/0.heic", "x.pdf")
    with pytest.raises(UserError, match=r"no images and no data file, but \.heic 2, \.pdf 1"):
        find_classes(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        ("train/a/0.png", "val/a/0.png"),
        ("train/a/0.png", "val/a/0.png", "images_raw/0.png"),
        ("Train/0.png", "TEST/0.png"),
        ("train/a/0.png", "train/b/0.png", "images_raw/0.png"),
        ("test/0.png",),
    ],
)
def test_splits_are_not_classes(tmp_path: Path, files: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"contains splits .* not classes") as told:
        find_classes(fill(tmp_path, *files))
    assert ("images_raw" in str(told.value)) == any("images_raw" in name for name in files)


def test_a_split_of_a_folder(tmp_path: Path, make_recipe: Any, image_card: Any) -> None:
    fill(tmp_path, "train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png", "raw/0.png")
    table = open_tables(make_recipe(train=[{"source": str(tmp_path), "split": "train"}]), image_card)["train"]
    assert [row["label"] for row in table] == ["a", "b"]


def test_a_folder_beside_train_and_val_is_left_out_and_reported(
    tmp_path: Path, make_recipe: Any, image_card: Any
) -> None:
    fill(tmp_path, "train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png", "images_raw/0.png")
    lines: list[str] = []
    recipe = make_recipe(train=str(tmp_path), validation=str(tmp_path))
    tables = open_tables(recipe, image_card, notify=lines.append)
    for name, folder in (("train", "train"), ("validation", "val")):
        assert [row["image"] for row in tables[name]] == [str(tmp_path / folder / f"{label}/0.png") for label in "ab"]
    assert all("images_raw" in line and "left to other splits" in line for line in lines[:2]) and len(lines) >= 2


def test_classes_that_are_named_like_a_split(tmp_path: Path) -> None:
    assert find_classes(fill(tmp_path, "train/0.png", "bus/0.png", "car/0.png")) == ["bus", "car", "train"]


def test_hidden_folders_and_folders_below_classes_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, "a/0.png", "a/deep/1.png", "b/0.png", "_old/0.png", ".cache/0.png", ".git/x", "__MACOSX/0.png")
    (tmp_path / "a" / "deep" / "up").symlink_to(tmp_path / "a")
    listing = list_images(tmp_path)
    assert [name for name, *_ in listing.images] == ["a/0.png", "a/deep/1.png", "b/0.png"]
    assert listing.notices() == [
        "hidden folders with images are left out: .cache, _old",
        "1 image lies in folders below a class folder; the first level is the class",
    ]


def test_notices_reach_the_user(tmp_path: Path, make_recipe: Any, image_card: Any) -> None:
    fill(tmp_path, "a/0.png", "b/0.png", "b/1.heic")
    lines: list[str] = []
    open_tables(make_recipe(train=str(tmp_path)), image_card, notify=lines.append)
    assert len(lines) == 1 and lines[0].startswith("train: ") and lines[0].endswith(".heic 1 (b/1.heic)")


def test_a_picture_that_is_put_in_place_later_is_seen(tmp_path: Path, make_recipe: Any, image_card: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "label": "x"}\n' * 3, "utf-8")

    def fingerprint() -> str:
        table: Any = open_tables(make_recipe(train=str(tmp_path / "a.jsonl")), image_card)["train"]
        return table.fingerprint

    missing = fingerprint()
    fill(tmp_path, "a.png")
    assert fingerprint() != missing and fingerprint() == fingerprint()


def test_a_picture_that_a_parquet_file_names(tmp_path: Path, make_recipe: Any, image_card: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = str(tmp_path / "a.png")
    columns = {"plain": [path, "b.png"], "struct": [{"bytes": None, "path": path}, {"bytes": b"1", "path": "b.png"}]}
    for name, images in columns.items():
        pq.write_table(pa.table({"image": images, "label": ["x", "y"]}), tmp_path / f"{name}.parquet")

    def fingerprints() -> list[str]:
        tables: list[Any] = [
            open_tables(make_recipe(train=str(tmp_path / f"{name}.parquet")), image_card)["train"] for name in columns
        ]
        return [table.fingerprint for table in tables]

    missing = fingerprints()
    fill(tmp_path, "a.png")
    present = fingerprints()
    assert all(a != b for a, b in zip(missing, present, strict=True)) and present == fingerprints()
