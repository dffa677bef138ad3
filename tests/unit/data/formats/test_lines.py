"""Tests that text files are read row by row with correct line numbers, and that a bad line costs one row, not the file."""

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.bad_rows import BadRow
from finetune.data.formats.lines import read_csv, read_jsonl, read_tsv
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

SOURCE = SourceSection(source="x")


def rows_of(reader, path: Path, content: bytes, source: SourceSection = SOURCE):
    """[(line, row or reason why it is bad)]"""
    path.write_bytes(content)
    return [(line, str(row) if isinstance(row, BadRow) else row) for line, row in reader(path, source)]


def test_jsonl_names_the_line_of_every_bad_row(tmp_path):
    content = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": }\n[1]\n{"a": "caf\xe9"}\n{"a": "\xc3\xa9"}'
    found = rows_of(read_jsonl, tmp_path / "x.jsonl", content)
    assert [line for line, _ in found] == [1, 4, 5, 6, 7]
    assert found[0][1] == {"a": 1} and found[4][1] == {"a": "é"}
    assert "not JSON: Expecting value at column 7" in found[1][1]
    assert found[2][1] == "not a JSON object, but a list"
    assert "not UTF-8 (byte 0xe9 at column 11)" in found[3][1] and "iconv" in found[3][1]


def test_jsonl_in_gzip(tmp_path):
    content = gzip.compress(b'{"a": 1}\n{"a": 2}\n')
    assert rows_of(read_jsonl, tmp_path / "x.jsonl.gz", content) == [(1, {"a": 1}), (2, {"a": 2})]
    with pytest.raises(UserError, match="cannot be read"):
        rows_of(read_jsonl, tmp_path / "y.jsonl.gz", content[:-12])


def test_utf16_is_reported(tmp_path):
    with pytest.raises(UserError, match="UTF-16") as error:
        rows_of(read_csv, tmp_path / "x.csv", "text,label\na,b\n".encode("utf-16"))
    assert "iconv" in error.value.remedy


def test_csv_counts_lines_inside_quotes(tmp_path):
    content = b'text,label\r\n"one\r\ntwo, ""three""",a\r\n\r\nfour,\r\nfive,b,c\r\nsix,d\r\n'
    found = rows_of(read_csv, tmp_path / "x.csv", content)
    assert found == [
        (2, {"text": 'one\r\ntwo, "three"', "label": "a"}),
        (5, {"text": "four"}),
        (6, "3 cells, but the header has 2 columns"),
        (7, {"text": "six", "label": "d"}),
    ]


def test_csv_goes_on_after_a_line_of_another_encoding(tmp_path):
    found = rows_of(read_csv, tmp_path / "x.csv", b"text,label\na,1\ncaf\xe9,2\nb,3\n")
    assert [line for line, _ in found] == [2, 3, 4]
    assert "not UTF-8" in found[1][1] and found[2][1] == {"text": "b", "label": "3"}


def test_csv_with_a_quote_never_closed_is_a_bad_row_where_it_opens(tmp_path):
    found = rows_of(read_csv, tmp_path / "x.csv", b'text,label\na,1\n"b,2\nc,3\n')
    assert found == [(2, {"text": "a", "label": "1"}), (3, "not CSV: a quote is never closed")]


def test_csv_of_other_separators_and_without_header(tmp_path):
    assert rows_of(read_csv, tmp_path / "x.csv", b"text;label\na, b;1\n") == [(2, {"text": "a, b", "label": "1"})]
    given_header = SourceSection(source="x", header=["text", "label"])
    assert rows_of(read_csv, tmp_path / "x.csv", b"a,1\n", given_header) == [(1, {"text": "a", "label": "1"})]


def test_csv_with_a_cell_of_a_megabyte(tmp_path):
    assert len(rows_of(read_csv, tmp_path / "x.csv", b"text\n" + b"x" * 1_000_000 + b"\n")[0][1]["text"]) == 1_000_000


def test_two_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="two columns are named 'text'"):
        rows_of(read_csv, tmp_path / "x.csv", b"text,text\na,b\n")


def test_tsv_takes_quotes_in_a_text_as_they_are(tmp_path):
    content = b'text\tlabel\n" oh " he said\t1\n"both ""sides"""\t0\na\tb\tc\n\n"open\t1\n'
    assert rows_of(read_tsv, tmp_path / "x.tsv", content) == [
        (2, {"text": '" oh " he said', "label": "1"}),
        (3, {"text": 'both "sides"', "label": "0"}),
        (4, "3 cells, but the header has 2 columns"),
        (6, {"text": '"open', "label": "1"}),
    ]


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff\r"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
def test_csv_gives_back_what_the_csv_module_wrote(rows):
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        found = rows_of(read_csv, Path(folder, "x.csv"), file.getvalue().encode())
    assert [row for _, row in found] == [{k: v for k, v in zip("ab", row, strict=True) if v} for row in rows]
    starts = [2 + sum(1 + (a + b).count("\n") for a, b in rows[:index]) for index in range(len(rows))]
    assert [line for line, _ in found] == starts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.dictionaries(CELL, CELL, max_size=3), st.just("broken {"), st.just("")), max_size=10))
def test_jsonl_is_read_whatever_stands_between(items):
    lines = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in items]
    with tempfile.TemporaryDirectory() as folder:
        found = rows_of(read_jsonl, Path(folder, "x.jsonl"), "\n".join(lines).encode())
    good = [(line, item) for line, item in enumerate(items, start=1) if isinstance(item, dict)]
    assert [(line, row) for line, row in found if isinstance(row, dict)] == good
    assert [line for line, row in found if isinstance(row, str)] == [
        line for line, item in enumerate(items, start=1) if item == "broken {"
    ]
