"""Tests that a sheet of an Excel workbook is read as it shows: values of formulas, dates, whole numbers, and no lost cell."""

import datetime
import re
import zipfile
from pathlib import Path

import openpyxl
import pytest

from finetune.data.bad_rows import BadRow
from finetune.data.formats.workbook import read_workbook, workbook_columns, workbook_notes
from finetune.errors import UserError
from finetune.recipe.data import SourceSection


def write(path: Path, **sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for number, row in rows.items():
            for column, value in enumerate(row, start=1):
                sheet.cell(number, column, value)
    book.save(path)


def rows_of(path: Path, **options):
    found = read_workbook(path, SourceSection(source="x", **options))
    return [(number, str(row) if isinstance(row, BadRow) else row) for number, row in found]


def edit(path: Path, pattern: str, replacement: str) -> None:
    """Replace text in the XML of the first sheet."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    parts[name], count = re.subn(pattern.encode(), replacement.encode(), parts[name])
    assert count
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)


def test_values_are_plain_and_empty_rows_and_cells_are_left_out(tmp_path):
    path = tmp_path / "x.xlsx"
    when = datetime.datetime(2024, 2, 3, 4, 5, 6)
    rows = {
        2: ["text", "label", " when "],
        3: ["a", 1.0, datetime.datetime(2024, 2, 3)],
        5: ["b", 2.5, when],
        6: ["c", True],
        7: ["d", None, None],
        30: [None, None, None],
    }
    write(path, first=rows)
    assert rows_of(path) == [
        (3, {"text": "a", "label": 1, "when": "2024-02-03"}),
        (5, {"text": "b", "label": 2.5, "when": "2024-02-03 04:05:06"}),
        (6, {"text": "c", "label": True}),
        (7, {"text": "d"}),
    ]
    assert type(rows_of(path)[0][1]["label"]) is int
    assert workbook_columns(path, SourceSection(source="x")) == ["text", "label", "when"]
    assert workbook_notes(path, SourceSection(source="x")) == []


def test_empty_rows_between_those_of_one_column_are_told_apart(tmp_path):
    write(tmp_path / "x.xlsx", first={1: ["text"], 2: ["a"], 5: ["b"]})
    assert rows_of(tmp_path / "x.xlsx") == [
        (2, {"text": "a"}),
        (3, "a blank line"),
        (4, "a blank line"),
        (5, {"text": "b"}),
    ]


def test_one_of_several_sheets(tmp_path):
    path = tmp_path / "x.xlsx"
    write(path, one={1: ["a"], 2: [1]}, two={1: ["b"], 2: [2]})
    assert rows_of(path) == [(2, {"a": 1})] and rows_of(path, sheet="two") == [(2, {"b": 2})]
    (note,) = workbook_notes(path, SourceSection(source="x"))
    assert "'one' is read" in note and "two" in note and "sheet:" in note
    with pytest.raises(UserError, match="no sheet 'tow'; did you mean 'two'"):
        rows_of(path, sheet="tow")


def test_cells_without_a_header_errors_and_formulas(tmp_path):
    path = tmp_path / "x.xlsx"
    rows = {
        1: ["text", "label"],
        2: ["a", 1, "lost"],
        3: ["b", "#N/A"],
        4: ["c", "=1+1"],
        5: ["d", "=2+2"],
        6: ["=x", 4],
    }
    write(path, first=rows)
    edit(path, r"<f>2\+2</f><v ?/>|<f>2\+2</f><v></v>", "<f>2+2</f><v>4</v>")
    edit(path, r'<c r="A6"[^>]*>.*?</c>', '<c r="A6" t="inlineStr"><is><t>=x</t></is></c>')
    found = rows_of(path)
    assert found[0] == (2, "C2 has a value, but the header has 2 columns")
    assert found[1] == (3, "B3 is an error (#N/A)")
    assert found[2][0] == 4 and "the formula in B4 has no stored value" in found[2][1]
    assert found[3:] == [(5, {"text": "d", "label": 4}), (6, {"text": "=x", "label": 4})]


def test_a_wrong_size_in_the_file_hides_no_cell(tmp_path):
    path = tmp_path / "x.xlsx"
    write(path, first={1: ["text", "label"], 2: ["a", 1]})
    edit(path, r'<dimension ref="[^"]*" ?/>', '<dimension ref="A1:A1"/>')
    assert rows_of(path) == [(2, {"text": "a", "label": 1})]


def test_a_header_given_by_the_source_and_faulty_headers(tmp_path):
    path = tmp_path / "x.xlsx"
    write(path, first={1: ["a", 1]})
    assert rows_of(path, header=["text", "label"]) == [(1, {"text": "a", "label": 1})]
    write(path, first={1: ["a", "a"], 2: [1, 2]})
    with pytest.raises(UserError, match="two columns are named 'a'"):
        rows_of(path)
    write(path, first={1: ["a", None, "c"], 2: [1, 2, 3]})
    assert rows_of(path) == [(2, {"a": 1, "column_2": 2, "c": 3})]
    assert "column_2" in workbook_notes(path, SourceSection(source="x"))[0]


@pytest.mark.parametrize("content", [b"", b"text,label\n", b"\xd0\xcf\x11\xe0" + bytes(600), b"PK\x05\x06" + bytes(18)])
def test_files_that_are_no_workbooks(tmp_path, content):
    (tmp_path / "x.xlsx").write_bytes(content)
    with pytest.raises(UserError, match=r"not an \.xlsx workbook"):
        rows_of(tmp_path / "x.xlsx")


def test_a_cell_far_below_the_last_row_and_endless_styles_are_refused(tmp_path):
    write(tmp_path / "a.xlsx", One={1: ["text"], 2: ["a"]})
    edit(tmp_path / "a.xlsx", "</sheetData>", '<row r="2000000"><c r="A2000000"><v>1</v></c></row></sheetData>')
    with pytest.raises(UserError, match="below row 1,048,576"):
        rows_of(tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/styles.xml", "<xf/>" * 700_000)
    with pytest.raises(UserError, match="more than 600,000 elements in its styles"):
        rows_of(tmp_path / "b.xlsx")
