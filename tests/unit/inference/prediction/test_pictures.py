"""Proves that pictures show the boxes of their own rows, under safe names, and are never written over other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.data.bad_rows import BadRow
from finetune.data.sources.streams import MemoryStream, StreamRow
from finetune.errors import UserError
from finetune.inference.prediction.outputs import open_output, read_records
from finetune.inference.prediction.pictures import MARK, draw_predictions, picture_name, prepare_folder
from finetune.inference.prediction.record_columns import RecordColumns
from finetune.tasks import CARDS

FIELDS = {"row": "integer", "boxes": [{"label": "text", "score": "number", "box": ["number"]}], "error": {}}


def asked(folder: Path) -> tuple[list[StreamRow], list[dict[str, Any]]]:
    for index in range(2):
        Image.new("RGB", (600, 400), "white").save(folder / f"a {index}.png")
    box = {"label": "cat", "score": 0.75, "box": [100.0, 50.0, 200.0, 100.0]}
    rows = [
        StreamRow(0, "x:1", {"image": str(folder / "a 0.png")}),
        StreamRow(1, "x:2", BadRow("broken")),
        StreamRow(2, "x:3", {"image": str(folder / "a 1.png")}),
        StreamRow(3, "x:4", {"image": str(folder / "gone.png")}),
    ]
    records = [
        {"row": 0, "boxes": [box]},
        {"row": 1, "error": {"kind": "bad_row", "message": "broken"}},
        {"row": 2, "boxes": []},
        {"row": 3, "boxes": [box]},
    ]
    return rows, records


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_boxes_are_drawn_where_they_are(tmp_path: Path, ending: str) -> None:
    rows, records = asked(tmp_path)
    output = open_output(tmp_path / f"out{ending}", RecordColumns(FIELDS))
    output.resume(None)
    output.append(records)
    output.finish()
    folder = tmp_path / "pictures"
    read = list(read_records(tmp_path / f"out{ending}", FIELDS))
    drawn = draw_predictions(folder, rows, read, ["cat", "dog"], None)
    assert (drawn.pictures, drawn.there, drawn.without) == (2, 0, 2)
    picture = Image.open(folder / "00000000-a_0.jpg")
    assert picture.size == (600, 400)
    colored = [picture.getpixel(at) for at in ((100, 100), (300, 100), (200, 150))]
    assert all(min(pixel) < 150 for pixel in colored), colored  # type: ignore[type-var,arg-type]
    assert min(picture.getpixel((200, 110))) > 240 and min(picture.getpixel((400, 300))) > 240  # type: ignore[arg-type,type-var]
    again = draw_predictions(folder, rows, read, ["cat", "dog"], None)
    assert (again.pictures, again.there) == (0, 2) and "2 were there" in again.describe(folder)


def test_names_are_safe() -> None:
    row = {"image": "../../etc/pass wd\n;$(x).png"}
    assert picture_name(StreamRow(7, "x:1", row)) == "00000007-pass_wd_x.jpg"
    assert picture_name(StreamRow(8, "data.parquet row 8", {"image": b"..."})) == "00000008-data.jpg"
    assert picture_name(StreamRow(9, "x", {"image": "/.../"})).startswith("00000009")
    assert len(picture_name(StreamRow(1, "x", {"image": "a" * 500}))) < 80


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    stream = MemoryStream([{"image": "x"}], CARDS["object_detection"])
    mine = tmp_path / "mine"
    prepare_folder(mine, CARDS["object_detection"], stream)
    (mine / "00000000.jpg").touch()
    prepare_folder(mine, CARDS["object_detection"], stream)
    assert (mine / MARK).exists()
    with pytest.raises(UserError, match="has files already"):
        prepare_folder(tmp_path, CARDS["object_detection"], stream)
    with pytest.raises(UserError, match="cannot be made"):
        prepare_folder(mine / "00000000.jpg" / "x", CARDS["object_detection"], stream)
    with pytest.raises(UserError, match="finds no boxes"):
        prepare_folder(mine, CARDS["text_classification"], stream)
