"""Tests that .json files are read element by element, in all common layouts, with the line of each row."""

import json

import pytest

from finetune.data.bad_rows import BadRow
from finetune.data.formats import json_file
from finetune.data.formats.json_file import read_json
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

ROWS = [{"text": f"row {index} – é \n ] {{", "n": index, "deep": {"a": [1, [2]]}} for index in range(50)]


@pytest.fixture(params=[7, 1 << 20], ids=["tiny chunks", "one chunk"])
def read(request, tmp_path, monkeypatch):
    monkeypatch.setattr(json_file, "CHUNK_CHARS", request.param)

    def read(content: str | bytes):
        path = tmp_path / "x.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [
            (line, str(row) if isinstance(row, BadRow) else row)
            for line, row in read_json(path, SourceSection(source="x"))
        ]

    return read


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data": rows}, lambda rows: {"v": 1, "data": rows}])
def test_lists_and_wrapped_lists(read, indent, wrap):
    assert [row for _, row in read("\ufeff \n" + json.dumps(wrap(ROWS), indent=indent, ensure_ascii=False))] == ROWS


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_after_another(read, indent):
    assert [row for _, row in read("\n\n".join(json.dumps(row, indent=indent) for row in ROWS))] == ROWS


def test_a_list_knows_the_line_of_each_row(read):
    found = read('[\n  {"a": 1},\n\n  {"a":\n 2}, 1234567890,\n  {"a": 3}]\n')
    assert found == [(2, {"a": 1}), (4, {"a": 2}), (5, "not a JSON object, but a number"), (6, {"a": 3})]


def test_json_lines_in_a_json_file_lose_one_bad_row(read):
    assert [line for line, row in read('{"a": 1}\n{"a": \n{"a": 3}\n') if isinstance(row, dict)] == [1, 3]


@pytest.mark.parametrize(
    ("content", "line"),
    [('[{"a": 1},\n{"a": 2}\n{"a": 3}]', 3), ('[{"a": 1},\n{"a" 2}]', 2), ('[{"a": 1},\n', 2), ('[\n{"a": 1}', 2)],
)
def test_a_broken_list_is_reported_with_its_line(read, content, line):
    with pytest.raises(UserError, match="not JSON") as error:
        read(content)
    assert error.value.where.endswith(f"x.json:{line}")


def test_another_encoding_is_reported_with_its_line(read):
    with pytest.raises(UserError, match="not UTF-8") as error:
        read(b'[{"a": "b"},\n{"a": "caf\xe9"}]')
    assert error.value.where.endswith("x.json:2")


def test_empty_lists_and_files_have_no_rows(read):
    assert read("[]") == [] and read("") == [] and read(" \n") == [] and read('{"data": []}') == []
