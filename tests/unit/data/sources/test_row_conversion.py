"""Tests that a file of JSON lines that several workers convert has the same rows, places and bad rows as line by line."""

import json
import os

import pytest

from finetune.data.prepare import chunk_writer, pool
from finetune.data.prepare.progress import Stage, entered
from finetune.data.sources import row_conversion
from finetune.data.sources.tables import open_tables
from finetune.errors import UserError


def write_file(path, *, mark=b""):
    """Lines of very different lengths: blank ones, broken ones, NaN, umlauts, Windows' ends, and no end at all."""
    lines = []
    for index in range(4_000):
        row = {"text": f"zeile {index} " + "ü" * (index % 97), "label": index % 3}
        line = json.dumps(row, ensure_ascii=False).encode()
        if index % 501 == 500:
            line = b'{"text": "broken'
        elif index % 701 == 700:
            line = b'{"label": NaN, "text": "no label"}'
        elif index % 301 == 300:
            line = b"   "
        lines.append(line + (b"\r\n" if index % 7 == 0 else b"\n"))
    lines.append(b'{"text": "the last", "label": 1')
    path.write_bytes(mark + b"".join(lines))


def everything(table):
    return (
        [table[index] for index in range(len(table))],
        [table.place(index) for index in range(len(table))],
        table.skipped,
        table.skipped_count,
    )


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(row_conversion, "CHUNK_BYTES", 7_001)
    monkeypatch.setattr(pool, "_may_fork", lambda: True)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_divided_file_has_the_rows_of_the_whole_one(mark, small_chunks, make_recipe, text_card, tmp_path, cache):
    path = tmp_path / "train.jsonl"
    write_file(path, mark=mark)
    one_by_one = make_recipe(train=str(path), on_bad_row="skip", limit=1_000_000)
    alone = everything(open_tables(one_by_one, text_card)["train"])
    assert len(alone[0]) > 3_900 and alone[3] > 10 and "may be incomplete" in alone[2][-1][1]
    for workers in (1, 3):
        with entered(Stage(workers=workers)):
            table = open_tables(make_recipe(train=str(path), on_bad_row="skip"), text_card)["train"]
        assert everything(table) == alone
        assert list(table) == alone[0] and list(table.values("label")) == [row.get("label") for row in alone[0]]
        for entry in (cache / "rows").iterdir():
            entry.rename(tmp_path / f"{workers}-{entry.name}")


def test_a_moved_or_touched_file_is_not_converted_again(make_recipe, text_card, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    write_file(path)
    before = open_tables(make_recipe(train=str(path), on_bad_row="skip"), text_card)["train"]
    other = tmp_path / "elsewhere" / "b.jsonl"
    other.parent.mkdir()
    path.rename(other)
    os.utime(other)
    monkeypatch.setattr(row_conversion.RowConverter, "convert", None)
    after = open_tables(make_recipe(train=str(other), on_bad_row="skip"), text_card)["train"]
    assert after.fingerprint == before.fingerprint and after.place(0).endswith("b.jsonl:1")


def test_a_change_that_keeps_size_and_time_is_seen(make_recipe, text_card, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "good", "label": 0}, {"text": "bad", "label": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    times = path.stat()
    before = open_tables(make_recipe(train=str(path)), text_card)["train"]
    path.write_text(path.read_text().replace("good", "gold"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = open_tables(make_recipe(train=str(path)), text_card)["train"]
    assert after[0]["text"] == "gold" and after.fingerprint != before.fingerprint


def test_a_file_that_changes_while_it_is_read_is_refused(small_chunks, make_recipe, text_card, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    write_file(path)
    real = row_conversion.write_lines

    def write_lines(*arguments):
        real(*arguments)
        with path.open("a") as file:
            file.write('{"text": "late", "label": 1}\n')

    monkeypatch.setattr("finetune.data.sources.rows.write_lines", write_lines)
    with pytest.raises(UserError, match="changed while it was read"):
        open_tables(make_recipe(train=str(path), on_bad_row="skip"), text_card)


def test_an_interrupted_conversion_continues(small_chunks, make_recipe, text_card, tmp_path, monkeypatch):
    monkeypatch.setattr(chunk_writer, "COMMIT_SECONDS", 0.0)
    path = tmp_path / "a.jsonl"
    write_file(path)
    whole = everything(open_tables(make_recipe(train=str(path), on_bad_row="skip", limit=10**6), text_card)["train"])
    run, ran = row_conversion.LinesJob.run, []

    def dies(job, chunk):
        if len(ran) == 20:
            raise KeyboardInterrupt
        ran.append(chunk)
        return run(job, chunk)

    monkeypatch.setattr(row_conversion.LinesJob, "run", dies)
    recipe = make_recipe(train=str(path), on_bad_row="skip")
    with pytest.raises(KeyboardInterrupt):
        open_tables(recipe, text_card)
    before = list(ran)
    ran.clear()
    monkeypatch.setattr(row_conversion.LinesJob, "run", lambda job, chunk: ran.append(chunk) or run(job, chunk))
    assert everything(open_tables(recipe, text_card)["train"]) == whole
    assert ran[0][0] == before[-1][1] and len(ran) > 10
