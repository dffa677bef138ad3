"""Attacks the names of files: links to blobs without an extension, as the hub's cache, DVC and git-annex keep data."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from finetune.data.sources.tables import open_tables

ROWS = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(6)]


def put(path: Path, content: bytes) -> None:
    """`path` as a link to blobs/<number>; DVC's are absolute, the hub's relative: here every other one."""
    blobs = path.parent / "blobs"
    blobs.mkdir(exist_ok=True, parents=True)
    blob = blobs / f"{len(list(blobs.iterdir())):04x}a1b2c"
    blob.write_bytes(content)
    relative = len(list(blobs.iterdir())) % 2
    path.symlink_to(os.path.relpath(blob, path.parent) if relative else blob)


def content_of(name: str, folder: Path) -> bytes:
    text = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "made")
        return (folder / "made").read_bytes()
    whole = {"csv": text, "tsv": text.replace(",", "\t"), "jsonl": lines, "json": json.dumps(ROWS)}
    plain = whole[name.removesuffix(".gz").rpartition(".")[2]].encode()
    return gzip.compress(plain) if name.endswith(".gz") else plain


@pytest.mark.parametrize(
    "name", ["train.csv", "train.tsv", "train.jsonl", "train.json", "train.parquet", "train.csv.gz"]
)
@pytest.mark.parametrize("given", ["file", "folder", "pattern", "linked folder"])
def test_a_link_is_read_by_the_name_that_was_given(
    name: str, given: str, tmp_path: Path, make_recipe: Any, text_card: Any
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    put(home / name, content_of(name, tmp_path))
    source = {"file": home / name, "folder": home, "pattern": home / "tr*", "linked folder": tmp_path / "link"}[given]
    if given == "linked folder":
        source.symlink_to(home)
    table = open_tables(make_recipe(train=str(source)), text_card)["train"]
    assert [dict(row) for row in table] == ROWS
    assert name in table.place(0) and "a1b2c" not in table.place(0)


def test_images_that_are_links_are_read_by_their_names(tmp_path: Path, make_recipe: Any, image_card: Any) -> None:
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "made.png")
        put(tmp_path / "store" / f"{label}.png", (tmp_path / "made.png").read_bytes() + label.encode())
        (tmp_path / "images" / label / "0.png").symlink_to(tmp_path / "store" / f"{label}.png")
    table = open_tables(make_recipe(train=str(tmp_path / "images")), image_card)["train"]
    assert [row["label"] for row in table] == ["a", "b"] and "0.png" in table.place(0)
    content = table.content  # type: ignore[attr-defined]
    (tmp_path / "images" / "a" / "0.png").unlink()
    (tmp_path / "images" / "a" / "0.png").symlink_to(tmp_path / "store" / "b.png")
    again: Any = open_tables(make_recipe(train=str(tmp_path / "images")), image_card)["train"]
    assert again.content != content, "another blob is another picture"
