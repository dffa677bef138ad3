"""Proves that rows are asked from every form of input, with and without labels, numbered alike from any row on."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from finetune.data.bad_rows import BadRow
from finetune.data.formats import standard_input
from finetune.data.sources.asked_columns import ColumnChoice, parse_columns
from finetune.data.sources.source_stream import SourceStream, open_stream
from finetune.data.sources.streams import MemoryStream, json_value
from finetune.errors import UserError
from finetune.recipe.data import SourceSection
from finetune.tasks import CARDS

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS = [f"text {index}" for index in range(7)]
LABELS = ["a", "b", "a", "b", "a", "b", "a"]


def rows_of(labeled: bool) -> list[dict[str, Any]]:
    return [{"text": text, **({"label": label} if labeled else {})} for text, label in zip(TEXTS, LABELS, strict=True)]


def jsonl(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_jsonl(folder: Path, labeled: bool) -> str:
    path = folder / "rows.jsonl"
    path.write_text(jsonl(rows_of(labeled)), "utf-8")
    return str(path)


def _json(folder: Path, labeled: bool) -> str:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows_of(labeled), indent=1), "utf-8")
    return str(path)


def _table(folder: Path, name: str, mark: str, encoding: str, labeled: bool) -> str:
    path = folder / name
    lines = [mark.join(["text", "label"] if labeled else ["text", "other"])]
    lines += [mark.join([row["text"], row.get("label", "x")]) for row in rows_of(labeled)]
    path.write_text("\n".join(lines) + "\n", encoding)
    return str(path)


def _csv(folder: Path, labeled: bool) -> str:
    return _table(folder, "rows.csv", ",", "utf-8-sig", labeled)


def _semicolons(folder: Path, labeled: bool) -> str:
    return _table(folder, "rows.csv", ";", "utf-16", labeled)


def _tsv(folder: Path, labeled: bool) -> str:
    return _table(folder, "rows.tsv", "\t", "utf-8", labeled)


def _xlsx(folder: Path, labeled: bool) -> str:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["text", "label"] if labeled else ["text"])
    for row in rows_of(labeled):
        book.active.append(list(row.values()))
    book.save(folder / "rows.xlsx")
    return str(folder / "rows.xlsx")


def _parquet(folder: Path, labeled: bool) -> str:
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows_of(labeled)), path, row_group_size=3)
    return str(path)


def _arrow(folder: Path, labeled: bool) -> str:
    table = pa.Table.from_pylist(rows_of(labeled))
    path = folder / "rows.arrow"
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return str(path)


def _compressed(opener: Callable[..., Any], ending: str) -> Callable[[Path, bool], str]:
    def write(folder: Path, labeled: bool) -> str:
        path = folder / f"rows.jsonl{ending}"
        with opener(path, "wt", encoding="utf-8") as file:
            file.write(jsonl(rows_of(labeled)))
        return str(path)

    return write


def _several(folder: Path, labeled: bool) -> str:
    rows = rows_of(labeled)
    for index, part in enumerate((rows[:2], rows[2:3], rows[3:])):
        (folder / f"part-{index}.jsonl").write_text(jsonl(part), "utf-8")
    return str(folder / "part-*.jsonl")


def _folder(folder: Path, labeled: bool) -> str:
    (folder / "inside").mkdir()
    _several(folder / "inside", labeled)
    return str(folder / "inside")


FORMS: dict[str, Callable[[Path, bool], str]] = {
    "jsonl": write_jsonl,
    "json": _json,
    "csv": _csv,
    "semicolons, utf-16": _semicolons,
    "tsv": _tsv,
    "xlsx": _xlsx,
    "parquet": _parquet,
    "arrow": _arrow,
    "gz": _compressed(gzip.open, ".gz"),
    "bz2": _compressed(bz2.open, ".bz2"),
    "xz": _compressed(lzma.open, ".xz"),
    "pattern": _several,
    "folder": _folder,
}


def stream_of(source: str, task: str = "text_classification", **options: Any) -> SourceStream:
    read = options.pop("read", {})
    return open_stream([SourceSection(source=source, **read)], CARDS[task], **options)


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows_from_any_row_on(tmp_path: Path, form: str, labeled: bool) -> None:
    stream = stream_of(FORMS[form](tmp_path, labeled))
    rows = list(stream.rows())
    assert [row.number for row in rows] == list(range(7)) and stream.labeled is labeled
    for row, text, label in zip(rows, TEXTS, LABELS, strict=True):
        assert isinstance(row.row, dict) and row.row["text"] == text
        assert row.row.get("label") == (label if labeled else None)
    for start in range(9):
        assert list(stream.rows(start)) == rows[start:]
    assert list(pickle.loads(pickle.dumps(stream)).rows(3)) == rows[3:]
    places = [row.place for row in rows]
    assert len(set(places)) == 7 and all("rows" in place or "part" in place for place in places)


def test_plain_lines_fill_the_role_that_the_task_reads(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("one\n\n two\n", "utf-8")
    for task, role in [("text_classification", "text"), ("seq2seq", "source"), ("preference", "prompt")]:
        stream = stream_of(str(path), task, columns=ColumnChoice(line_role=CARDS[task].rows.line_role))
        assert [row.row for row in stream.rows()] == [{role: "one"}, {role: " two"}]
        assert any("1 blank line is no row (the first is line 2)" in note for note in stream.notes)
    (tmp_path / "rows.csv").write_text("text\none\n\n\ntwo\n\n", "utf-8")
    stream = stream_of(str(tmp_path / "rows.csv"), "text_classification")
    for skip in (0, 1):
        assert [row.row for row in stream.rows(skip)] == [{"text": "one"}, {"text": "two"}][skip:]
        assert any("2 blank lines are no rows (the first is line 3)" in note for note in stream.notes)
    card = CARDS["causal_lm"]
    options: Any = card.options
    assert card.rows.role_of_lines(options()) == "prompt"
    assert card.rows.role_of_lines(options(format="alpaca")) == "instruction"


def test_lines_of_two_columns_are_tags(tmp_path: Path) -> None:
    path = tmp_path / "rows.conll"
    path.write_text("Ann B-per\nleft O\n\nBob B-per\n", "utf-8")
    stream = stream_of(str(path), "token_classification")
    assert [row.row for row in stream.rows()] == [
        {"tokens": ["Ann", "left"], "tags": ["B-per", "O"]},
        {"tokens": ["Bob"], "tags": ["B-per"]},
    ]
    assert stream.labeled
    path.write_text("Ann\nleft\n", "utf-8")
    stream = stream_of(str(path), "token_classification")
    assert not stream.labeled and [row.row for row in stream.rows()] == [{"tokens": ["Ann", "left"]}]


def test_parallel_text_and_one_side_alone(tmp_path: Path) -> None:
    for ending, lines in (("de", "ein\nzwei\n"), ("en", "one\ntwo\n")):
        (tmp_path / f"x.{ending}").write_text(lines, "utf-8")
    choice = ColumnChoice(recipe={"source": "de", "target": "en"})
    stream = stream_of(str(tmp_path / "x.{de,en}"), "seq2seq", columns=choice)
    assert [row.row for row in stream.rows()] == [
        {"source": "ein", "target": "one"},
        {"source": "zwei", "target": "two"},
    ]
    assert stream.labeled
    (tmp_path / "alone.jsonl").write_text('{"de": "drei"}\n', "utf-8")
    stream = stream_of(str(tmp_path / "alone.jsonl"), "seq2seq", columns=choice)
    assert [row.row for row in stream.rows()] == [{"source": "drei"}] and not stream.labeled


def _picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def test_images_by_folder_by_name_by_pattern_and_by_list(tmp_path: Path) -> None:
    files = [_picture(tmp_path / "photos" / name) for name in ("cat/a.png", "dog/b.png")]
    stream = stream_of(str(tmp_path / "photos"), "image_classification")
    assert [row.row for row in stream.rows()] == [
        {"image": str(files[0]), "label": "cat"},
        {"image": str(files[1]), "label": "dog"},
    ]
    assert stream.labeled and next(stream.rows(1)).number == 1
    loose = _picture(tmp_path / "loose" / "c.png")
    for source in (str(loose), str(tmp_path / "loose" / "*.png"), str(tmp_path / "loose")):
        stream = stream_of(source, "image_classification")
        assert [row.row for row in stream.rows()] == [{"image": str(loose)}] and not stream.labeled
    listed = tmp_path / "list.csv"
    listed.write_text("image,name\nloose/c.png,x\nnone.png,y\n", "utf-8")
    found = [row.row["image"] for row in stream_of(str(listed), "object_detection").rows()]  # type: ignore[index]
    assert found == [str(loose), str(tmp_path / "none.png")]  # one that is missing is an error of its row, later


def test_coco_with_and_without_annotations(tmp_path: Path) -> None:
    image = _picture(tmp_path / "a.png")
    content: dict[str, Any] = {"images": [{"id": 1, "file_name": "a.png"}]}
    path = tmp_path / "x.coco.json"
    path.write_text(json.dumps(content), "utf-8")
    (row,) = stream_of(str(path), "object_detection").rows()
    assert row.row == {"image": str(image), "image_id": 1}
    content["categories"] = [{"id": 3, "name": "cat"}]
    content["annotations"] = [{"id": 7, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2]}]
    path.write_text(json.dumps(content), "utf-8")
    (row,) = stream_of(str(path), "object_detection").rows()
    assert isinstance(row.row, dict) and row.row["objects"]["category"] == ["cat"]


def test_coco_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of a command line are relative to the current folder, and so are the images that such a file names."""
    image = _picture(tmp_path / "coco" / "images" / "a.png")
    content: dict[str, Any] = {"images": [{"id": 1, "file_name": "a.png"}]}
    for name, read in (("coco/x.json", {"images": "coco/images"}), ("coco/images/x.json", {})):
        (tmp_path / name).write_text(json.dumps(content), "utf-8")
        monkeypatch.chdir(tmp_path)
        (row,) = stream_of(name, "object_detection", read=read).rows()
        assert row.row == {"image": str(image), "image_id": 1}


def test_built_in_sets() -> None:
    stream = stream_of("builtin:digits", "image_classification", read={"split": "validation"}, keep=["label=expected"])
    rows = list(stream.rows())
    assert len(rows) > 300 and stream.labeled and rows[5] == next(stream.rows(5))
    assert rows[0].kept == {"expected": rows[0].row["label"]}  # type: ignore[index]
    with pytest.raises(UserError, match="no split"):
        stream_of("builtin:digits", "image_classification")
    with pytest.raises(UserError, match="holds bytes"):
        stream_of("builtin:digits", "image_classification", read={"split": "validation"}, keep=["image"])


def test_bad_rows_have_numbers_and_lose_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        '{"text": "a", "id": 1}',
        "{broken",
        '{"id": 3}',
        '{"text": NaN, "id": 4}',
        '{"text": "x\\ud83d", "id": 5}',
    ]
    path.write_text("\n".join([*lines, '{"text": "z", "id": NaN}']), "utf-8")
    stream = stream_of(str(path), keep=["id"])
    rows = list(stream.rows())
    assert [row.number for row in rows] == list(range(6))
    reasons = [str(row.row) if isinstance(row.row, BadRow) else "" for row in rows]
    assert reasons[0] == "" and reasons[5] == ""
    assert "not JSON" in reasons[1] and "no value in column text" in reasons[2] and "no value" in reasons[3]
    assert "surrogate" in reasons[4]
    assert [dict(row.kept) for row in rows] == [{"id": 1}, {}, {"id": 3}, {"id": 4}, {"id": 5}, {"id": None}]
    assert rows[4].place.endswith("rows.jsonl:5")
    assert any("NaN or infinite" in note for note in stream.notes)


def test_several_sources_are_numbered_together(tmp_path: Path) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.csv"
    first.write_text(jsonl(rows_of(True)[:3]), "utf-8")
    second.write_text("sentence\nfour\nfive\n", "utf-8")
    sources = [SourceSection(source=str(first)), SourceSection(source=str(second))]
    stream = open_stream(sources, CARDS["text_classification"])
    rows = list(stream.rows())
    assert [row.row["text"] for row in rows] == [*TEXTS[:3], "four", "five"]  # type: ignore[index]
    assert not stream.labeled and list(stream.rows(4)) == rows[4:] and stream.name.endswith("1.jsonl and 1 more")


def test_limits_count_over_the_files_of_a_source(tmp_path: Path) -> None:
    stream = stream_of(_several(tmp_path, False), read={"limit": 4})
    rows = list(stream.rows())
    assert [row.row["text"] for row in rows] == TEXTS[:4]  # type: ignore[index]
    assert list(stream.rows(3)) == rows[3:] and list(stream.rows(4)) == []


def test_columns_by_flag_by_recipe_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "b", "review": "r", "sentence": "s"}\n', "utf-8")

    def text(**choice: Any) -> str:
        (row,) = stream_of(str(path), columns=ColumnChoice(**choice)).rows()
        return row.row["text"]  # type: ignore[index,return-value]

    assert text(flags={"text": "body"}, recipe={"text": "review"}) == "b"
    assert text(recipe={"text": "review"}) == "r"
    assert text(recipe={"text": "gone"}) == "s" and text() == "s"


def test_a_question_alone_is_what_is_asked_in_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for column in ("dialogue", "Dialogue"):
        path.write_text(f'{{"{column}": "hello"}}\n', "utf-8")
        (row,) = stream_of(str(path), "seq2seq").rows()
        assert row.row == {"source": "hello"}
    path.write_text('{"response_j": "yes", "question": "why?"}\n', "utf-8")
    (row,) = stream_of(str(path), "reward_model").rows()
    assert row.row == {"prompt": "why?", "chosen": "yes"}


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"texts": "a", "stars": 1}\n', "utf-8")
    with pytest.raises(UserError, match=r"no column for text .did you mean texts.") as caught:
        stream_of(str(path))
    assert "--columns text=texts" in caught.value.remedy
    with pytest.raises(UserError, match=r"trained on 'starz' .did you mean stars.") as caught:
        stream_of(str(path), columns=ColumnChoice(recipe={"text": "starz"}))
    assert "--columns text=stars" in caught.value.remedy
    with pytest.raises(UserError, match=r"no column 'txets' .did you mean texts."):
        stream_of(str(path), columns=ColumnChoice(flags={"text": "txets"}))
    with pytest.raises(UserError, match="has no role 'txt'") as caught:
        stream_of(str(path), columns=ColumnChoice(flags={"txt": "texts"}))
    assert "Did you mean text?" in caught.value.remedy
    for texts in (["text"], ["=a"], ["text="], ["text=a", "text=b"]):
        with pytest.raises(UserError, match=r"ROLE=COLUMN|given twice"):
            parse_columns(texts)
    assert parse_columns(["text=a=b"]) == {"text": "a=b"}


def test_kept_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "x", "meta": {"n": [1, NaN]}}\n', "utf-8")
    reserved = ["row", "label", "score", "error"]
    (row,) = stream_of(str(path), keep=["meta", "meta.n", "label=expected"], reserved=reserved).rows()
    assert row.kept == {"meta": {"n": [1, None]}, "meta.n": [1, None], "expected": "x"}
    stream = stream_of(str(path), keep=["all"], reserved=reserved)
    (row,) = stream.rows()
    assert row.kept == {"text": "a", "input_label": "x", "meta": {"n": [1, None]}}
    assert any("label is kept as input_label" in note for note in stream.notes)
    with pytest.raises(UserError, match="cannot be kept as label") as caught:
        stream_of(str(path), keep=["label"], reserved=reserved)
    assert "--keep label=input_label" in caught.value.remedy
    with pytest.raises(UserError, match=r"no column 'txt' .did you mean text."):
        stream_of(str(path), keep=["txt"])


def test_types_of_kept_columns_are_known_where_the_data_has_types(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"], "n": [1], "f": [0.5], "t": [True], "l": [[1]], "b": [b"x"]}), path)
    stream = stream_of(str(path), keep=["n", "f", "t", "l", "text"])
    assert stream.kept_types == {"n": "integer", "f": "number", "t": "truth", "text": "text"}
    assert stream_of(str(path), keep=["all"]).kept == ["text", "n", "f", "t", "l"]


def test_values_beside_answers_are_json() -> None:
    import datetime

    value = {"a": float("nan"), 1: [datetime.date(2026, 1, 2), b"x", "x\ud83d", True, None, 2.5]}
    assert json_value(value) == {"a": None, "1": ["2026-01-02", None, "x?", True, None, 2.5]}


def test_a_file_that_grows_while_it_is_read_is_not_read_on(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path, False)
    stream = stream_of(source)
    rows = stream.rows()
    assert next(rows).number == 0
    with Path(source).open("a", encoding="utf-8") as file:
        file.write('{"text": "half of a li')
    with pytest.raises(UserError, match="changed while it was read, from") as caught:
        list(rows)
    assert "rows.jsonl" in str(caught.value.where)
    with pytest.raises(UserError, match="changed while it was read"):
        list(stream.rows(3))


def test_the_identity_changes_with_contents_and_columns_and_not_with_times(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path, True)
    before = stream_of(source).identity()
    os.utime(source, (1, 1))
    assert stream_of(source).identity() == before != []
    assert stream_of(source, columns=ColumnChoice(flags={"text": "label"})).identity() != before
    assert stream_of(source, keep=["label=l"]).identity() != before
    Path(source).write_text(jsonl(rows_of(True)).replace("text 3", "text x"), "utf-8")
    assert stream_of(source).identity() != before


def test_the_identity_of_a_large_file_is_of_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.data.sources import sampled_digest

    monkeypatch.setattr(sampled_digest, "WHOLE_BYTES", 100)
    monkeypatch.setattr(sampled_digest, "SAMPLE_BYTES", 2)
    path = tmp_path / "x"
    path.write_bytes(bytes(range(200)))
    before = sampled_digest.quick_digest(path)
    assert before[0] == 200 and len(before) == 3
    path.write_bytes(bytes(range(199)) + b"x")
    assert sampled_digest.quick_digest(path)[2] != before[2]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_data_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(UserError, match="is empty"):
        stream_of(str(path))
    with pytest.raises(UserError, match="no rows"):
        list(MemoryStream([], CARDS["text_classification"]).rows())


class OnlyForward(io.RawIOBase):
    """A pipe: no seeking, a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        some = self.data[self.at : self.at + min(size, 1000)]
        self.at += len(some)
        return some


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def fill(text: str) -> None:
        monkeypatch.setattr(standard_input, "_input", standard_input.StandardInput(OnlyForward(text.encode())))

    return fill


@pytest.mark.parametrize("count", [3, 3000])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "text"])
def test_standard_input(pipe: Callable[[str], None], kind: str, count: int) -> None:
    rows = [{"text": f"text {index} " + "x" * (index % 50)} for index in range(count)]
    texts = {
        "jsonl": jsonl(rows),
        "json": json.dumps(rows),
        "csv": "text,n\n" + "".join(f"{row['text']},1\n" for row in rows),
        "tsv": "text\tn\n" + "".join(f"{row['text']}\t1\n" for row in rows),
        "text": "".join(row["text"] + "\n" for row in rows),
    }
    pipe(texts[kind])
    stream = stream_of("-", read={} if kind == "jsonl" else {"format": kind})
    assert not stream.resumable and stream.identity() == [] and stream.name == "standard input"
    found = list(stream.rows())
    assert [row.row["text"].strip() for row in found] == [row["text"].strip() for row in rows]  # type: ignore[index]
    assert found[0].place.startswith("standard input:")
    if count == 3000 and kind != "json":  # which was read as a whole to find its columns
        with pytest.raises(UserError, match="only once"):
            list(stream.rows())


def test_standard_input_of_other_formats_is_refused(pipe: Callable[[str], None]) -> None:
    pipe("")
    with pytest.raises(UserError, match="parquet cannot be read from standard input"):
        stream_of("-", read={"format": "parquet"})
    with pytest.raises(UserError, match="is empty"):
        stream_of("-")


def test_rows_in_memory() -> None:
    rows: list[dict[str, Any]] = [{"sentence": "a", "id": 1}, {"sentence": None}, {"sentence": "c"}]
    stream = MemoryStream(rows, CARDS["text_classification"], keep=["id"])
    found = list(stream.rows())
    assert [isinstance(row.row, BadRow) for row in found] == [False, True, False]
    assert found[0].row == {"text": "a", "id": 1} and found[0].kept == {"id": 1}
    assert list(stream.rows(2)) == found[2:] and stream.identity() == []
