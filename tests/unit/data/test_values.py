"""Tests that NaN is no value and half of a surrogate pair a bad row, in every format and nested, each with its place."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.data.bad_rows import BadRow
from finetune.data.sources.source_stream import open_stream
from finetune.data.sources.tables import open_tables
from finetune.data.values import UNUSED, OddValues, check_text, lone_surrogate, to_number, without_nan
from finetune.errors import UserError
from finetune.recipe.data import SourceSection

NAN, INF, HALF = math.nan, math.inf, "\ud83d"


@pytest.fixture
def read(tmp_path, make_recipe, text_card):
    """read([row, ...] or text, name) -> (rows of the table, messages)"""

    def read(rows, name="a.jsonl", **more):
        path, said = tmp_path / name, []
        if name.endswith("parquet"):
            pq.write_table(rows, path)
        else:
            path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
        table = open_tables(make_recipe(train=str(path), **more), text_card, notify=said.append)["train"]
        return list(table), said

    return read


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("odd", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_nan_in_json_is_no_value(read, name, odd):
    good = f'{{"text": "a", "text_pair": {odd}, "label": 1}}\n{{"text": "b", "label": 0}}\n'
    rows, said = read(good, name)
    assert rows == [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    (told,) = said
    assert told.startswith("train: text_pair: 1 value is NaN or infinite, read as missing") and f"{name}:1" in told
    with pytest.raises(UserError, match=rf"{name}:3: no value in column text"):
        read(good + f'{{"text": {odd}, "label": 1}}\n', name)


def test_nan_inside_of_lists_and_mappings_is_null(read):
    rows, _ = read('{"text": "a", "label": ["x", NaN], "more": {"deep": [1.5, -Infinity]}}\n')
    assert rows == [{"text": "a", "label": ["x", None], "more": {"deep": [1.5, None]}}]
    assert without_nan({"a": (NAN, 1.0), "b": "nan"}) == {"a": [None, 1.0], "b": "nan"}


def test_nan_and_null_in_parquet(read):
    table = pa.table({"text": ["a", "b", "c"], "label": [1.0, NAN, None], "text_pair": pa.array([NAN, 1.0, INF])})
    with pytest.raises(UserError, match="2 rows cannot be used") as caught:
        read(table, "a.parquet")
    assert "a.parquet row 1: no value in column label" in str(caught.value)
    rows, said = read(table, "a.parquet", on_bad_row="skip")
    assert rows == [{"text": "a", "label": 1.0}]
    assert any("text_pair: 2 values are NaN or infinite" in line and "a.parquet row 0" in line for line in said)
    nested = pa.table({"text": ["a", "b"], "label": [[1.0, NAN], [0.0, 1.0]]})
    assert read(nested, "b.parquet")[0][0]["label"] == [1.0, None]


def test_words_for_nothing_are_text_in_csv_but_counted(read):
    rows, said = read("text,label\nnan,x\nNA,y\nnana,x\n,y\n", "a.csv", on_bad_row="skip")
    assert [row["text"] for row in rows] == ["nan", "NA", "nana"]  # an empty cell is a bad row
    assert said[0].startswith("train: text: 2 values are just a word such as nan") and "a.csv:2" in said[0]
    assert read([{"text": "nan", "label": "null"}])[1] == []  # JSON has a null of its own


def test_half_of_a_surrogate_pair_is_one_bad_row(read):
    good = {"text": "whole \U0001f600 \x00", "label": "x"}
    for row in (
        {"text": f"x {HALF}", "label": "x"},
        {"text": "a", "label": ["y", HALF]},
        {"text": {"k": HALF}, "label": 1},
    ):
        with pytest.raises(UserError, match=r"a\.jsonl:2: (text|label) contains half of a surrogate pair \(\\ud83d\)"):
            read([good, row])
        assert read([good, row], on_bad_row="skip")[0] == [good]
    rows, _ = read([{**good, "unread": HALF}])  # a column that the task does not read
    assert rows == [{**good, "unread": HALF}]


def test_text_checks():
    assert lone_surrogate("\ud83d\ude00") is not None and lone_surrogate("\U0001f600 é") is None
    assert lone_surrogate({"a": [1, None, {"b": ["ok", HALF]}]}) == HALF and lone_surrogate({HALF: 1}) == HALF
    with pytest.raises(BadRow, match="the column"):
        check_text(["a", HALF], "the column")


def test_counts_are_added_up_over_files():
    one, two = OddValues(), OddValues()
    one.look({"a": NAN, "b": "NULL"}, {"a": "a", "b": "b"}, "one:1", words=True)
    two.look({"a": INF, "b": "NULL"}, {"a": "a", "b": "b"}, "two:1", words=False)
    one.extend(OddValues(json.loads(json.dumps(two.to_list()))))
    assert one.notes()[0].startswith("a: 2 values are NaN or infinite") and "(first: one:1)" in one.notes()[0]
    assert len(one.notes()) == 2


def test_numbers_in_roles_of_texts_are_counted():
    found = OddValues()
    for line, row in enumerate([{"review": 5, "label": 1}, {"review": 0.5}, {"review": True}, {"review": "5"}], 1):
        found.look(row, {"text": "review", "label": "label"}, f"a:{line}", words=False)
    assert found.notes() == ["review: 2 values are numbers, read as text (first: a:1)"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_training_and_prediction_tell_of_numbers_in_texts(read, text_card, tmp_path, name):
    if name == "a.jsonl":
        rows, said = read('{"text": "a", "label": "x"}\n{"text": 17, "label": "x"}\n', name)
    else:
        rows, said = read(pa.table({"text": [17, None], "label": ["x", "x"]}), name, on_bad_row="skip")
    assert rows[-1]["text"] == 17
    told = "text: 1 value is a number, read as text"
    assert any(told in line for line in said), said
    stream = open_stream([SourceSection(source=str(tmp_path / name))], text_card)
    assert len(list(stream.rows())) == 2
    assert any(note.startswith(told) for note in stream.notes), stream.notes


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "text\na\n\nb\n\n"), ("a.tsv", "text\na\n\nb\n"), ("a.txt", "x\na\n\nb")]
)
def test_training_tells_of_blank_lines_between_rows_of_one_column(read, name, content):
    rows, said = read(content, name, columns={"text": "text", "label": "text"})
    assert [row["text"] for row in rows][-2:] == ["a", "b"]
    (told,) = said
    assert told.startswith("train: 1 blank line is no row (first: ") and f"{name}:3)" in told


@pytest.mark.parametrize("value", ["1_000", "0_1", True, False, "one", ""])
def test_what_is_a_number_for_python_alone_is_none(value):
    with pytest.raises(ValueError, match=r"not a number|could not convert"):
        to_number(value)


def test_numbers_in_their_usual_forms():
    assert list(map(to_number, ["1000", " 1e3 ", "-.5", 7, 0.25])) == [1000.0, 1000.0, -0.5, 7.0, 0.25]


def test_unused_categories_are_told_in_one_line():
    odd = OddValues()
    for number in range(10):
        odd.add(UNUSED, f"c{number}", "a.json")
    odd.add(UNUSED, "c0", "b.json")
    (line,) = odd.notes()
    assert line.startswith("categories that a file lists without a box of them: c0, c1, ") and "c7 and 2 more" in line
    assert "(first: a.json)" in line
