"""Tests that .json files are read element by element, in all common layouts, with the line of each row."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.bad_rows import BadRow
from finetune.data.formats import json_file
from finetune.data.formats.json_file import read_json
from finetune.data.formats.lines import describe_number
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


def test_a_row_that_cannot_be_used_costs_no_other(read):
    deep = "[" * 50_000 + '"]"' + "]" * 50_000
    bad = ['{"a": ' + deep + "}", '{"a": 1, "a": 2}', '{"s": "\\"[", "a": [{"b": 1, "b": "]\\\\"}]}', "9" * 5_000]
    expected = ["nested too deeply", "the key 'a' occurs twice", "the key 'b' occurs twice", "more than 4,300 digits"]
    content = "[" + ",\n".join(f'{{"n": {index}}}, {row}' for index, row in enumerate(bad)) + ', {"n": 9}]'
    found = read(content)
    assert [row["n"] for _, row in found if isinstance(row, dict)] == [0, 1, 2, 3, 9]
    reasons = [(number, row) for number, row in found if isinstance(row, str)]
    assert [describe_number(number) for number, _ in reasons] == [" row 1", " row 3", " row 5", " row 7"]
    assert all(part in reason for part, (_, reason) in zip(expected, reasons, strict=True))


def test_a_table_by_columns_and_several_splits_are_refused(read):
    with pytest.raises(UserError, match="columns rather than rows"):
        read('{"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}')
    with pytest.raises(UserError, match="several splits: train, test"):
        read('{"train": [{"a": 1}], "test": [{"a": 2}]}')
    assert read('{"messages": [{"role": "user"}]}') == [(1, {"messages": [{"role": "user"}]})]


def test_a_list_in_another_encoding(tmp_path):
    path = tmp_path / "x.json"
    for encoding in ("utf-16", "cp1252"):
        path.write_bytes('[{"a": "é"},\n {"a": "ü"}]'.encode(encoding))
        found = list(read_json(path, SourceSection(source="x", encoding=encoding)))
        assert found == [(1, {"a": "é"}), (2, {"a": "ü"})]


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
OBJECT = st.dictionaries(st.text('ab[]{}"\\', min_size=1, max_size=4), JSON, max_size=3)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(OBJECT, st.booleans()), max_size=6), st.integers(1, 40), st.booleans())
def test_any_list_is_read_around_rows_with_a_key_twice(items, chunk, ascii_only):
    """The n-th value of the list is the n-th row, or bad if a key occurs twice somewhere in it."""
    doubled = '{"x": [1, {"k": "}", "k": "]\\""}, "[{"], "y": 0}'
    values = [doubled if bad else json.dumps(row, ensure_ascii=ascii_only) for row, bad in items]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "CHUNK_CHARS", chunk)
        Path(folder, "x.json").write_bytes(("[" + " ,\n".join(values) + "]").encode("utf-8", "surrogatepass"))
        found = list(read_json(Path(folder, "x.json"), SourceSection(source="x")))
    assert [None if isinstance(row, BadRow) else row for _, row in found] == [None if bad else r for r, bad in items]
    assert [line for line, _ in found] == list(range(1, len(items) + 1))


@settings(max_examples=80, deadline=None)
@given(st.text('{}[],:" \\01ae\n', max_size=30), st.sampled_from([1, 3, 1 << 20]))
def test_any_text_is_rows_or_a_user_error(content, chunk):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "CHUNK_CHARS", chunk)
        Path(folder, "x.json").write_text(content)
        try:
            found = list(read_json(Path(folder, "x.json"), SourceSection(source="x")))
        except UserError:
            return
    assert all(isinstance(row, (dict, BadRow)) for _, row in found)
