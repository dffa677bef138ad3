"""Proves that images count as content: whatever changes in place is seen, and copies elsewhere are the same data."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from finetune.data.prepare import content_digests as module
from finetune.data.prepare.content_digests import MISSING, content_digests, joint_digest
from finetune.data.prepare.progress import Stage, entered
from finetune.data.sources.tables import open_tables


def picture(path: Path, color: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (color, 0, 0)).save(path, "BMP")  # of the same size for every color


def repaint(path: Path, color: int) -> None:
    """In place: size and modification time stay."""
    stat = path.stat()
    picture(path, color)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns


def test_every_change_of_a_file_is_seen(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a", "b", "sub/c", "nul\0")]
    Path(paths[0]).write_bytes(b"1")
    first = content_digests(paths)
    assert first[1:] == [MISSING] * 3 and len(first[0]) == 32
    Path(paths[1]).write_bytes(b"1")
    assert content_digests(paths)[:2] == [first[0]] * 2 and content_digests([paths[1], paths[1]]) == [first[0]] * 2
    stat = Path(paths[0]).stat()
    Path(paths[0]).write_bytes(b"2")
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_digests(paths)[0] not in (first[0], MISSING)
    Path(paths[1]).unlink()
    assert content_digests(paths)[1] == MISSING and joint_digest([]) == ""


def test_a_file_is_read_once_and_by_several_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(300):
        (tmp_path / f"{index}").write_bytes(bytes([index % 256]) * 50)
    paths = [str(tmp_path / f"{index}") for index in range(300)]
    with entered(Stage(workers=2)):
        together = content_digests(paths)
    assert len(set(together)) == 256
    monkeypatch.setattr(module, "read_digest", lambda path: pytest.fail(f"{path} is read again"))
    assert content_digests(paths) == together
    os.utime(paths[7])
    with pytest.raises(pytest.fail.Exception):
        content_digests(paths)


FORMS = ("jsonl", "csv", "parquet", "coco", "folder")


def make(folder: Path, form: str) -> str:
    """Two images, and what names them; the source."""
    for name in ("one", "two"):
        picture(folder / "images" / name / "0.bmp", len(name) if name == "one" else 9)
    names = ["images/one/0.bmp", "images/two/0.bmp"]
    rows = [{"image": name, "label": label} for name, label in zip(names, "ab", strict=True)]
    path = folder / f"train.{form}"
    if form == "folder":
        return str(folder / "images")
    if form == "parquet":
        whole = [{**row, "image": {"bytes": None, "path": str(folder / row["image"])}} for row in rows]
        pq.write_table(pa.Table.from_pylist(whole), path)
    elif form == "csv":
        path.write_text("image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows))
    elif form == "coco":
        path = folder / "train.json"
        images = [{"id": i, "file_name": name, "width": 4, "height": 4} for i, name in enumerate(names)]
        boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 2, 2]} for i in range(2)]
        path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_that_is_repainted_in_place_is_other_data_and_a_copy_is_not(
    form: str, tmp_path: Path, make_recipe: Any, image_card: Any
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    source = make(here, form)

    def opened(source: str) -> Any:
        given = {"source": source, "format": "coco"} if form == "coco" else source
        return open_tables(
            make_recipe(train=given, columns={"label": "objects"} if form == "coco" else {}), image_card
        )["train"]

    before = opened(source)
    if form != "parquet":  # whose paths are written in full
        there = tmp_path / "another machine"
        shutil.copytree(here, there)
        for path in there.rglob("*"):
            os.utime(path, ns=(1, 1))
        copied = opened(source.replace(str(here), str(there)))
        assert copied.content == before.content and copied.fingerprint != before.fingerprint
        assert [file["content"] for file in copied.files()] == [file["content"] for file in before.files()]
    os.utime(here / "images" / "one" / "0.bmp")
    assert opened(source).content == before.content, "touched, but the same"
    repaint(here / "images" / "one" / "0.bmp", 77)
    assert opened(source).content != before.content and opened(source).fingerprint != before.fingerprint
    repaint(here / "images" / "one" / "0.bmp", 3)
    assert opened(source).content == before.content
