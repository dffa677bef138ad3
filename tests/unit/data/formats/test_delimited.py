"""Tests that CSV and TSV files are read with correct line numbers, that no row takes the place of the header, and that rows
which an open quote takes in are reported.
"""

import csv
import io
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.bad_rows import BadRow, BlankLine
from finetune.data.formats import delimited
from finetune.data.formats.delimited import csv_columns, read_csv, read_tsv
from finetune.data.formats.delimited_notes import csv_hint, csv_notes, tsv_hint, tsv_notes
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

SOURCE = SourceSection(source="x")


def rows_of(reader, path: Path, content: bytes, source: SourceSection = SOURCE):
    """[(line, row or reason why it is bad)]"""
    path.write_bytes(content)
    return [(line, str(row) if isinstance(row, BadRow) else row) for line, row in reader(path, source)]


def test_csv_counts_lines_inside_quotes(tmp_path):
    content = b'text,label\r\n"one\r\ntwo, ""three""",a\r\n\r\nfour,\r\nfive,b,c\r\nsix,d\r\n'
    found = rows_of(read_csv, tmp_path / "x.csv", content)
    assert found == [
        (2, {"text": 'one\r\ntwo, "three"', "label": "a"}),
        (5, {"text": "four"}),
        (6, "3 cells, but the header has 2 columns"),
        (7, {"text": "six", "label": "d"}),
    ]


def test_an_empty_cell_of_the_only_column_is_a_row_and_a_blank_line_is_none(tmp_path):
    """`""` is what pandas and the csv module write there; without it, answers would not line up with the rows."""
    assert rows_of(read_csv, tmp_path / "x.csv", b'text\none\n""\n\nfour\n') == [
        (2, {"text": "one"}),
        (3, {}),
        (4, "a blank line"),
        (5, {"text": "four"}),
    ]


@pytest.mark.parametrize("reader", [read_csv, read_tsv])
def test_blank_lines_between_the_rows_of_one_column_are_told_apart_from_rows(tmp_path, reader):
    """Spreadsheets write an empty cell so; behind the header, of several columns and at the end of a file they mean nothing."""
    found = rows_of(reader, tmp_path / "x", b"\ntext\none\n\n\nfour\n\n\n")
    assert found == [(3, {"text": "one"}), (4, "a blank line"), (5, "a blank line"), (6, {"text": "four"})]
    blank = [line for line, row in reader(tmp_path / "x", SOURCE) if isinstance(row, BlankLine)]
    assert blank == [4, 5]
    mark = b"," if reader is read_csv else b"\t"
    two = b"text,label\none,a\n\nfour,b\n".replace(b",", mark)
    assert [line for line, _ in rows_of(reader, tmp_path / "z", two)] == [2, 4]


def test_csv_goes_on_after_a_line_of_another_encoding(tmp_path):
    found = rows_of(read_csv, tmp_path / "x.csv", b"text,label\na,1\ncaf\xe9,2\nb,3\n")
    assert [line for line, _ in found] == [2, 3, 4]
    assert "not UTF-8" in found[1][1] and found[2][1] == {"text": "b", "label": "3"}


def test_csv_with_a_quote_never_closed_is_a_bad_row_where_it_opens(tmp_path):
    found = rows_of(read_csv, tmp_path / "x.csv", b'text,label\na,1\n"b,2\nc,3\n')
    reason = "not CSV: a quote is never closed, and takes in the line after it, to the end of the file"
    assert found == [(2, {"text": "a", "label": "1"}), (3, reason)]


def test_csv_of_other_separators_and_without_header(tmp_path):
    assert rows_of(read_csv, tmp_path / "x.csv", b"text;label\na, b;1\n") == [(2, {"text": "a, b", "label": "1"})]
    given_header = SourceSection(source="x", header=["text", "label"])
    assert rows_of(read_csv, tmp_path / "x.csv", b"a,1\n", given_header) == [(1, {"text": "a", "label": "1"})]


def test_csv_with_a_cell_of_a_megabyte(tmp_path):
    assert len(rows_of(read_csv, tmp_path / "x.csv", b"text\n" + b"x" * 1_000_000 + b"\n")[0][1]["text"]) == 1_000_000


def test_two_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="two columns are named 'text'"):
        rows_of(read_csv, tmp_path / "x.csv", b"text,text\na,b\n")


@pytest.mark.parametrize(("reader", "mark"), [(read_csv, ","), (read_tsv, "\t")])
def test_a_header_of_a_million_columns_is_refused_at_once(reader, mark, tmp_path):
    header = mark.join(f"c{index}" for index in range(1_000_000))
    began = time.process_time()
    with pytest.raises(UserError, match="the header has 1,000,000 columns; 100,000 are read at most"):
        rows_of(reader, tmp_path / "x.csv", f"{header}\n".encode())
    assert time.process_time() - began < 10


def test_of_ninety_thousand_columns_a_repeated_one_is_found_in_time(tmp_path):
    header = ",".join(f"c{index}" for index in range(90_000))
    began = time.process_time()
    with pytest.raises(UserError, match="two columns are named 'c7'"):
        rows_of(read_csv, tmp_path / "x.csv", f"{header},c7\n".encode())
    assert time.process_time() - began < 5


def test_tsv_takes_quotes_in_a_text_as_they_are(tmp_path):
    content = b'text\tlabel\n" oh " he said\t1\n"both ""sides"""\t0\na\tb\tc\n\n"open\t1\n'
    assert rows_of(read_tsv, tmp_path / "x.tsv", content) == [
        (2, {"text": '" oh " he said', "label": "1"}),
        (3, {"text": 'both "sides"', "label": "0"}),
        (4, "3 cells, but the header has 2 columns"),
        (6, {"text": '"open', "label": "1"}),
    ]


@pytest.mark.parametrize(("reader", "mark"), [(read_csv, ","), (read_csv, ";"), (read_tsv, "\t")])
def test_a_header_of_another_encoding_is_an_error_with_its_byte(tmp_path, reader, mark):
    content = mark.join(["Text", "Gefühl"]) + "\n" + mark.join(["gut", "wärm"]) + "\n"
    with pytest.raises(UserError, match=r"the header cannot be read: not UTF-8 \(byte 0xfc at column 9\)") as error:
        rows_of(reader, tmp_path / "x.csv", content.encode("cp1252"))
    assert error.value.where.endswith("x.csv:1") and "encoding: cp1252" in error.value.what
    source = SourceSection(source="x", encoding="cp1252")
    assert rows_of(reader, tmp_path / "x.csv", content.encode("cp1252"), source) == [
        (2, {"Text": "gut", "Gefühl": "wärm"})
    ]
    assert rows_of(reader, tmp_path / "x.csv", content.encode("utf-16")) == [(2, {"Text": "gut", "Gefühl": "wärm"})]


def test_a_header_that_is_not_csv_is_an_error(tmp_path):
    for content in (b'"text"raw,label\na,b\n', b'"text,label\na,b\n', b"te\0xt,label\na,b\n"):
        with pytest.raises(UserError, match="the header cannot be read") as error:
            rows_of(read_csv, tmp_path / "x.csv", content)
        assert error.value.where.endswith("x.csv:1") and "header:" in error.value.remedy


def test_utf16_without_a_mark_is_an_error_that_says_so(tmp_path):
    with pytest.raises(UserError, match="utf-16-le"):
        rows_of(read_csv, tmp_path / "x.csv", "text,label\na,b\n".encode("utf-16-le"))
    source = SourceSection(source="x", encoding="utf-16-le")
    found = rows_of(read_csv, tmp_path / "x.csv", "text,label\na,b\n".encode("utf-16-le"), source)
    assert found == [(2, {"text": "a", "label": "b"})]


@pytest.mark.parametrize(
    ("content", "row", "note"),
    [
        ('"text, raw";label\na, b;1\n', {"text, raw": "a, b", "label": "1"}, "semicolons"),
        ("text, raw;label\na;1\nb, c;2\n", {"text, raw": "a", "label": "1"}, "semicolons"),
        ("a;b,label\nx,1\ny;z,2\n", {"a;b": "x", "label": "1"}, ""),
        ("text|label\na|1\n", {"text": "a", "label": "1"}, "vertical bars"),
        ("text\tlabel\na\t1\n", {"text": "a", "label": "1"}, "tabs"),
        ('text,label\n"a;\nb;c",1\n', {"text": "a;\nb;c", "label": "1"}, ""),
        ("text\na|b\n", {"text": "a|b"}, ""),
    ],
)
def test_the_separator_is_found_outside_of_quotes_and_reported(tmp_path, content, row, note):
    assert rows_of(read_csv, tmp_path / "x.csv", content.encode())[0] == (2, row)
    assert csv_notes(tmp_path / "x.csv", SOURCE) == ([f"cells are separated by {note}"] if note else [])


def test_rows_that_an_open_quote_takes_in_are_counted(tmp_path):
    content = b'text,label\na,1\n"b,2\nc,3\nd,4\n"e, f",5\ng,6\n'
    found = rows_of(read_csv, tmp_path / "x.csv", content)
    assert [line for line, _ in found] == [2, 3, 7] and found[2][1] == {"text": "g", "label": "6"}
    assert "not CSV" in found[1][1] and "may have taken in the 3 lines after it" in found[1][1]


def test_an_open_quote_that_closes_later_by_chance_is_a_bad_row(tmp_path):
    content = b'text,label\n"a,1\nb,2\nc,3\nd 5",4\ne,5\n'
    found = rows_of(read_csv, tmp_path / "x.csv", content)
    assert found[0][0] == 2 and "closes 3 lines later; the 2 lines between look like rows" in found[0][1]
    assert found[1] == (6, {"text": "e", "label": "5"})
    prose = b'text,label\n"Roses are red, dear\nviolets, too, are blue\nsugar is sweet\nand so, so are you",good\n'
    ((_, row),) = rows_of(read_csv, tmp_path / "x.csv", prose)
    assert row["label"] == "good"


def test_a_line_of_another_encoding_within_a_cell_costs_that_row_alone(tmp_path):
    found = rows_of(read_csv, tmp_path / "x.csv", b'text,label\n"a\ncaf\xe9\nb",1\nc,2\n')
    assert [line for line, _ in found] == [3, 5] and "not UTF-8" in found[0][1]
    assert found[1][1] == {"text": "c", "label": "2"}


def test_a_huge_cell_is_a_bad_row_and_the_rows_after_it_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "MAX_CELL_CHARS", 1_000)
    content = b'text,label\n"' + b"x\n" * 600 + b"a,1\nb,2\n"
    found = rows_of(read_csv, tmp_path / "x.csv", content)
    assert found[0][0] == 2 and "a cell of more than 1,000 characters" in found[0][1]
    assert found[-1] == (603, {"text": "b", "label": "2"})


def test_columns_without_a_name_are_reported(tmp_path):
    for reader, notes, mark in ((read_csv, csv_notes, ","), (read_tsv, tsv_notes, "\t")):
        content = mark.join(["", "text", " "]) + "\n" + mark.join("abc") + "\n"
        found = rows_of(reader, tmp_path / "x.csv", content.encode())
        assert found == [(2, {"column_1": "a", "text": "b", "column_3": "c"})]
        assert notes(tmp_path / "x.csv", SOURCE) == ["columns without a name are called column_1, column_3"]


@pytest.mark.parametrize(
    ("content", "looks"),
    [("a film,1\nb film,0\n", True), ("a film,good\nb film,good\n", True), ("text,label\na,1\n", False)],
)
def test_a_first_line_that_looks_like_a_row(tmp_path, content, looks):
    for hint, mark in ((csv_hint, ","), (csv_hint, ";"), (tsv_hint, "\t")):
        (tmp_path / "x.csv").write_text(content.replace(",", mark))
        assert ("header: [" in hint(tmp_path / "x.csv", SOURCE)) == looks


def test_a_column_that_is_empty_in_the_first_rows_is_a_column(tmp_path):
    (tmp_path / "x.csv").write_text('text,"label"\n' + "a,\n" * 2_000 + "b,1\n")
    assert csv_columns(tmp_path / "x.csv", SOURCE) == ["text", "label"]


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
@given(st.binary(max_size=60), st.sampled_from([read_csv, read_tsv]))
def test_any_bytes_are_rows_or_a_user_error(content, reader):
    """Rows have one cell per name of the header, and their lines ascend."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = rows_of(
                reader, Path(folder, "x.csv"), b"a,b\n" + content, SourceSection(source="x", header=["a", "b"])
            )
        except UserError:
            return
    assert [line for line, _ in found] == sorted(line for line, _ in found)
    assert all(isinstance(row, str) or set(row) <= {"a", "b"} for _, row in found)


def test_csv_with_the_lines_of_old_macs_or_the_first_line_of_excel_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"a carriage return stands alone.*tr "):
        rows_of(read_csv, tmp_path / "x.csv", b"text,label\ra,1\rb,2\r")
    (tmp_path / "y.csv").write_bytes(b"sep=;\ntext;label\na;1\n")
    assert "sep=, is for Excel" in csv_hint(tmp_path / "y.csv", SOURCE)
