"""Proves that what is written is what was answered, in every format, also if it ends in the middle and goes on."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.errors import UserError
from finetune.inference.prediction.output_name import check_output_name
from finetune.inference.prediction.outputs import open_output
from finetune.inference.prediction.record_columns import RecordColumns

FIELDS = {
    "row": "integer",
    "label": "text",
    "score": "number",
    "labels": [{"label": "text", "score": "number"}],
    "error": {"kind": "text", "message": "text"},
}
COLUMNS = RecordColumns(FIELDS, ["id", "note"], {"id": "integer"})
RECORDS: list[dict[str, Any]] = [
    {
        "row": 0,
        "label": 'a "quoted", b',
        "score": 0.5,
        "labels": [{"label": "x\ny", "score": 1e-9}],
        "id": 7,
        "note": None,
    },
    {"row": 1, "error": {"kind": "bad_row", "message": "not JSON, at\r\ncolumn 1"}, "id": None, "note": "é \ud83d"},
    {"row": 2, "label": "", "score": 1.0, "labels": [], "id": 9, "note": {"deep": [1, "ü"]}},
    {"row": 3, "label": "=1+1", "score": 0.25, "labels": None, "id": 10, "note": "plain"},
]
ENDINGS = (".jsonl", ".csv", ".parquet")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file under the names of its columns; nested values of CSV from their JSON."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def write(path: Path, windows: Sequence[Sequence[dict[str, Any]]]) -> None:
    output = open_output(path, COLUMNS)
    output.resume(None)
    for window in windows:
        output.append(window)
    output.finish()


def test_json_lines_are_the_records(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, [RECORDS[:1], RECORDS[1:]])
    expected = [*RECORDS]
    expected[1] = {**RECORDS[1], "note": "é \\ud83d"}
    assert read(path)[0] == expected[0] and read(path)[2:] == expected[2:]
    assert read(path)[1]["error"] == RECORDS[1]["error"]


def test_cells_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write(path, [RECORDS[:3], RECORDS[3:]])
    rows = read(path)
    assert list(rows[0]) == ["row", "label", "score", "labels", "error_kind", "error_message", "id", "note"]
    assert rows[0]["label"] == 'a "quoted", b' and json.loads(rows[0]["labels"]) == RECORDS[0]["labels"]
    assert rows[1]["error_kind"] == "bad_row" and rows[1]["error_message"] == "not JSON, at\r\ncolumn 1"
    assert rows[1]["label"] == "" and rows[1]["score"] == "" and rows[1]["note"] == "é \\ud83d"
    assert json.loads(rows[2]["note"]) == {"deep": [1, "ü"]} and rows[2]["labels"] == "[]"
    assert [row["row"] for row in rows] == ["0", "1", "2", "3"] and float(rows[3]["score"]) == 0.25


def test_columns_of_parquet_have_types(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    write(path, [RECORDS[:3], RECORDS[3:]])
    schema = pq.read_schema(path)
    assert schema.field("row").type == pa.int64() and schema.field("score").type == pa.float64()
    assert schema.field("labels").type == pa.list_(pa.struct({"label": pa.string(), "score": pa.float64()}))
    assert schema.field("id").type == pa.int64() and schema.field("note").type == pa.string()
    rows = read(path)
    assert [row["row"] for row in rows] == [0, 1, 2, 3] and rows[0]["labels"] == RECORDS[0]["labels"]
    assert rows[1]["error_kind"] == "bad_row" and rows[1]["id"] is None and rows[1]["labels"] is None
    assert rows[2]["note"] == '{"deep": [1, "ü"]}' and rows[2]["label"] == "" and rows[3]["note"] == "plain"
    assert not list((tmp_path / "out.parquet.parts" / "rows").iterdir())


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_ends_anywhere_goes_on_to_the_same_file(tmp_path: Path, ending: str) -> None:
    whole = tmp_path / f"whole{ending}"
    windows = [RECORDS[:1], RECORDS[1:3], RECORDS[3:]]
    write(whole, windows)
    for stop in range(4):
        path = tmp_path / f"out-{stop}{ending}"
        output = open_output(path, COLUMNS)
        output.resume(None)
        position = None
        for window in windows[:stop]:
            position = output.append(window)
        position = json.loads(json.dumps(position))
        if stop < 3:
            output.append(windows[stop])  # written, but its state was not: a crash
        again = open_output(path, COLUMNS)
        again.resume(position)
        for window in windows[stop:]:
            again.append(window)
        again.finish()
        assert path.read_bytes() == whole.read_bytes()
        late = open_output(path, COLUMNS)  # a crash came before it was known that all is written
        late.resume(json.loads(json.dumps(again.append([]))) if ending != ".parquet" else 3)
        late.finish()
        assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_an_output_that_lost_rows_is_not_filled_with_zeros(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out{ending}"
    output = open_output(path, COLUMNS)
    output.resume(None)
    position = output.append(RECORDS)
    path.write_bytes(path.read_bytes()[:-9])
    left = path.read_bytes()
    with pytest.raises(UserError, match=rf"{len(left)} bytes, fewer than the {position['size']:,}"):
        open_output(path, COLUMNS).resume(position)
    assert path.read_bytes() == left


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_an_output_that_was_edited_is_not_gone_on_with(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out{ending}"
    output = open_output(path, COLUMNS)
    output.resume(None)
    output.append(RECORDS[:2])
    position = output.append(RECORDS[2:])
    left = path.read_bytes()
    open_output(path, COLUMNS).check_finished(position, 4)
    for edited in (left.replace(b"plain", b"Plain"), left[9:], left.replace(b"bad_row", b"bad__row")):
        path.write_bytes(edited)
        for call in (lambda one: one.resume(position), lambda one: one.check_finished(position, 4)):
            with pytest.raises(UserError, match=r"was changed|fewer than|and had"):
                call(open_output(path, COLUMNS))
        assert path.read_bytes() == edited
    path.write_bytes(left + b"more")
    with pytest.raises(UserError, match="and had"):
        open_output(path, COLUMNS).check_finished(position, 4)


def test_windows_of_a_table_that_were_exchanged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    output = open_output(path, COLUMNS)
    output.resume(None)
    output.append(RECORDS[:2])
    position = output.append(RECORDS[2:])
    open_output(path, COLUMNS).resume(position)
    rows = tmp_path / "out.parquet.parts" / "rows"
    one, other = sorted(rows.iterdir())
    first, second = one.read_bytes(), other.read_bytes()
    for contents in ((second, first), (first, first), (first, second[:-9]), (first, b"")):
        one.write_bytes(contents[0])
        other.write_bytes(contents[1])
        with pytest.raises(UserError, match="is not the window that was written"):
            open_output(path, COLUMNS).resume(position)
    other.write_bytes(second)
    again = open_output(path, COLUMNS)
    again.resume(position)
    again.finish()
    again.check_finished(position, 4)
    path.write_bytes(first)
    with pytest.raises(UserError, match="was finished with 4 rows"):
        open_output(path, COLUMNS).check_finished(position, 4)


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_half_a_line_never_stays(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"out{ending}"
    output = open_output(path, COLUMNS)
    output.resume(None)
    output.append(RECORDS[:1])
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        output.append(RECORDS[1:])
    assert path.read_bytes() == before
    monkeypatch.undo()
    output.append(RECORDS[1:])
    assert len(read(path)) == 4


def test_nothing_of_a_parquet_file_is_there_before_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.parquet"
    output = open_output(path, COLUMNS)
    output.resume(None)
    output.append(RECORDS)
    assert not path.exists()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            output.finish()
    assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    output.finish()
    assert len(read(path)) == 4


def test_many_windows_become_few_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    write(path, [[{"row": index}] for index in range(50)])
    found = pq.ParquetFile(path)
    assert found.metadata.num_row_groups == 1 and found.metadata.num_rows == 50


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_rows_are_a_file_with_none(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out{ending}"
    write(path, [])
    assert read(path) == []


@pytest.mark.parametrize("name", ["out.json", "out.jsonl.gz", "out", "out.xlsx"])
def test_other_extensions_are_refused_with_those_that_work(name: str) -> None:
    with pytest.raises(UserError, match="extension") as caught:
        check_output_name(Path(name))
    assert ".jsonl, .csv, .parquet" in caught.value.remedy
    check_output_name(Path("OUT.CSV"))
