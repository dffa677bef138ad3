"""Tests that plain text becomes a row per line, paragraph or document, and that nothing but blank lines is left out."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.bad_rows import BadRow, BlankLine
from finetune.data.formats import lines, plain_text
from finetune.data.formats.plain_text import read_text, text_notes
from finetune.recipe.data import SourceSection

CONTENT = b"one\r\ntwo \n\n\n \nthree\tfour\n\nfive"


def rows_of(path: Path, content: bytes, **options):
    path.write_bytes(content)
    found = read_text(path, SourceSection(source="x", **options))
    rows = [(line, row) for line, row in found if not isinstance(row, BlankLine)]
    return [(line, str(row) if isinstance(row, BadRow) else row["text"]) for line, row in rows]


def test_blank_lines_between_lines_are_told_apart_from_rows(tmp_path):
    for unit, blank in (("line", [3, 4, 5, 7]), ("paragraph", []), ("document", [])):
        (tmp_path / "x.txt").write_bytes(CONTENT + b"\n\n\n")
        found = read_text(tmp_path / "x.txt", SourceSection(source="x", sample_by=unit))
        assert [line for line, row in found if isinstance(row, BlankLine)] == blank


def test_rows_are_lines_paragraphs_or_the_document(tmp_path):
    path = tmp_path / "x.txt"
    assert rows_of(path, CONTENT) == [(1, "one"), (2, "two "), (6, "three\tfour"), (8, "five")]
    assert rows_of(path, CONTENT, sample_by="paragraph") == [(1, "one\ntwo "), (6, "three\tfour"), (8, "five")]
    whole = rows_of(path, b"\n\n" + CONTENT + b"\n\n", sample_by="document")
    assert whole == [(3, "one\ntwo \n\n\n \nthree\tfour\n\nfive")]
    assert rows_of(path, b" \n\n") == rows_of(path, b"", sample_by="document") == []


@pytest.mark.parametrize(("unit", "places"), [("line", [2]), ("paragraph", [1]), ("document", [1])])
def test_a_line_that_is_not_text_makes_its_row_bad(tmp_path, unit, places):
    found = rows_of(tmp_path / "x.txt", b"a\ncaf\xe9\n\nb", sample_by=unit)
    bad = [line for line, row in found if "not UTF-8" in row]
    assert bad == places and (unit == "line") == all("line 2:" not in row for _, row in found)
    assert ("b" in [row for _, row in found]) == (unit != "document")


def test_a_document_that_is_too_long_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_text, "MAX_LINE_BYTES", 10)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 10)
    found = rows_of(tmp_path / "x.txt", b"abc\n" * 9 + b"\nab\n", sample_by="paragraph")
    assert [line for line, _ in found] == [1, 11] and "longer than" in found[0][1] and found[1][1] == "ab"


def test_a_table_named_txt_is_reported(tmp_path):
    path = tmp_path / "x.txt"
    for content, is_table in ((b"a\tb\nc\td\n", True), (b"a\nc\td\n", False), (b"a\n", False)):
        path.write_bytes(content)
        assert bool(text_notes(path, SourceSection(source="x"))) == is_table


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\ufeff"), max_size=8), max_size=9
    )
)
def test_lines_and_paragraphs_hold_the_same_text(texts):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.txt")
        by_line = rows_of(path, "\n".join(texts).encode())
        by_paragraph = rows_of(path, "\n".join(texts).encode(), sample_by="paragraph")
    filled = [(number, text) for number, text in enumerate(texts, start=1) if text.encode().strip()]
    assert by_line == filled
    assert [line for _, text in by_paragraph for line in text.split("\n")] == [text for _, text in filled]
