"""Tests that several labels of a row are read as the whole column writes them, and that other forms are bad rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finetune.data.bad_rows import BadRow
from finetune.data.label_form_decision import decide_form
from finetune.data.label_forms import LIST, LabelForm, parse_list, split_labels, vector_positions
from finetune.data.labels import Labels, label_key, label_text
from finetune.errors import UserError


def form_of(*values: Any, stated: tuple[str, ...] = (), separator: str = "from_data") -> LabelForm:
    same = lambda text: label_key(label_text(text))  # noqa: E731
    return decide_form(values, stated=stated, separator=separator, column="label", same=same)[0]


def told(*values: Any, **more: Any) -> str:
    return decide_form(values, stated=(), separator="from_data", column="label", **more)[1]


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 0, 1], [0, 0, 1], [1, 1, 0]],
        [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]],
        [[True, False, True], [False, False, True], [True, True, False]],
        [np.array([1, 0, 1]), np.array([0.0, 0.0, 1.0]), np.array([True, True, False])],
        ["[1, 0, 1]", "[0, 0, 1]", "[1, 1, 0]"],
        ["[1 0 1]", "[0 0 1]", "[1 1 0]"],
        ["[1. 0. 1.]", "[0. 0. 1.]", "[1. 1. 0.]"],
        ["1,0,1", "0,0,1", "1,1,0"],
        ["1|0|1", "0|0|1", "1|1|0"],
        ["1 0 1", "0 0 1", "1 1 0"],
        ["[True, False, True]", "[False, False, True]", "[True, True, False]"],
        [["1", "0", "1"], ["0", "0", "1"], ["1", "1", "0"]],
    ],
)
def test_vectors_are_classes_by_position(rows: list[Any]) -> None:
    form = form_of(*rows)
    assert form.length == 3 and "vectors of 3 values" in told(*rows)
    labels = Labels(["a", "b", "c"], form)
    assert [labels.indices(row) for row in rows] == [[0, 2], [2], [0, 1]]
    assert labels.indices([]) == labels.indices(None) == labels.indices("") == []


def test_a_ragged_or_mixed_vector_is_a_bad_row() -> None:
    labels = Labels(["a", "b", "c"], form_of(*[[1, 0, 1], [0, 0, 1]] * 2, [1, 1], [0, 2, 0], ["joy"]))
    for row, reason in (
        ([1, 1], "the label vector has 2 values, but those of the training data have 3"),
        ([0, 2, 0], "must contain only 0 and 1, not 2"),
        ([0.5, 0, 1], "must contain only 0 and 1, not 0.5"),
        (["joy"], "not 'joy'"),
        ([1, None, 0], "not None"),
        (1, "1 value,"),
    ):
        with pytest.raises(BadRow, match=reason):
            labels.indices(row)


def test_lists_of_numbers_that_are_no_vectors_are_names() -> None:
    assert form_of([0], [2, 5], [1, 0], [0, 1]).length == 0  # indices of classes
    assert form_of([0], [1], [0, 1], []).length == 0  # of unequal length, nothing repeated
    assert form_of([0, 1], [1, 0], [0, 1]).length == 2  # as names, every row would be the same
    assert form_of([0, 1], [1, 1], [0, 0]).length == 2
    assert form_of([1, 0, 1], [0, 1, 1], stated=("0", "1")).length == 0  # the recipe says so
    with pytest.raises(UserError, match="lists of one value, 0 or 1") as caught:
        form_of([0], [1], [1])
    assert "options.labels" in caught.value.remedy
    assert form_of([0], [1], stated=("spam",)).length == 1 and form_of([0], [1], stated=("no", "yes")).length == 0


@pytest.mark.parametrize(
    ("rows", "separator"),
    [
        (["['a', 'b']", "['b']", "[]"], LIST),
        (['["a", "b"]', '["b"]', ""], LIST),
        (["[a, b]", "[b]"], LIST),
        (["['a' 'b']", "['b']"], LIST),
        (["('a', 'b')", "('b',)"], LIST),
        (["a|b", "b"], "|"),
        (["a;b", "b"], ";"),
        (["a,b", "b"], ","),
        (["a, b", "b"], ","),
    ],
)
def test_text_is_split_as_the_column_is_written(rows: list[str], separator: str) -> None:
    form = form_of(*rows)
    assert form == LabelForm(separator)
    labels = Labels(["a", "b"], form)
    assert [labels.indices(row) for row in rows][:2] == [[0, 1], [1]]
    assert repr(rows[0]) in told(*rows)


def test_one_decision_for_the_column() -> None:
    assert form_of("x, y|z", "z").separator == "|"  # commas stay within names
    assert form_of("x, y;z", "z").separator == ";"
    labels = Labels(["a", "b"], form_of("['a', 'b']", "['b']", "a"))
    with pytest.raises(BadRow, match="'a' is not a list, unlike the other labels"):
        labels.indices("a")
    labels = Labels(["a", "b"], form_of("a|b", "b", "a", "['a', 'b']"))
    with pytest.raises(BadRow, match="a list written as text, unlike the other labels"):
        labels.indices("['a', 'b']")


def test_commas_in_names_survive_if_the_recipe_says_so() -> None:
    places = ("Paris, France", "Rome, Italy")
    assert form_of(*places).separator == "," and "label_separator: none" in told(*places)
    assert form_of(*places, separator="none").separator == ""
    assert form_of(*places, stated=places).separator in ("", "|")  # only then all are names of the recipe
    assert Labels(places, form_of(*places, stated=places)).indices("Rome, Italy") == [1]
    assert form_of("a,b", "b", stated=("a", "b")).separator == ","
    assert form_of("a|b", "c", stated=("a|b", "c")).separator == ""
    assert form_of("a;b", separator=",").separator == ","


def test_lists_and_text_in_one_column() -> None:
    form = form_of(["joy", "anger"], "joy|fear", [], None, "joy")
    labels = Labels(["anger", "fear", "joy"], form)
    assert [labels.indices(row) for row in (["joy", "anger"], "joy|fear", [], None)] == [[0, 2], [1, 2], [], []]
    assert Labels(["a|b"], form).indices(["a|b"]) == [0]  # the items of a real list are whole


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ('["don\'t", "x"]', ["don't", "x"]),
        (r"['don\'t', 'x']", ["don't", "x"]),
        ("[\"don't\", 'x, y']", ["don't", "x, y"]),
        ("[New York, Paris]", ["New York", "Paris"]),
        ("['a'\n 'b']", ["a", "b"]),
        ("{'a', 'b'}", ["a", "b"]),
        ("['a', None]", ["a", None]),
        ("[0.5 0.5]", ["0.5", "0.5"]),
        ("[]", []),
        ("['é']", ["é"]),
        ("(other)", None),
        ("[a", None),
        ("a, b", None),
        ("[['a'], ['b']]", None),
        ("[don't, x]", None),
        ("['a' 'b' ... 'y' 'z']", None),
        ("[0 1 ... 1 0]", None),
        ("['wait ... what']", ["wait ... what"]),
        ("", None),
    ],
)
def test_lists_written_as_text(text: str, items: Any) -> None:
    assert parse_list(text) == items


def test_positions_by_hand() -> None:
    assert vector_positions(["1", 0.0, True], 3) == [0, 2] and vector_positions([0, 0], 2) == []
    assert split_labels({"a"}, LabelForm()) == ["a"] and split_labels(7, LabelForm()) == [7]


def test_vectors_of_a_typed_file_that_names_the_numbers() -> None:
    """Sequence(ClassLabel(names=[a, b, c])) holding vectors: the file says b, a, b for 1, 0, 1."""
    rows, declared = [["b", "a", "b"], ["a", "a", "b"]], ["a", "b", "c"]
    form, _ = decide_form(rows, stated=(), separator="from_data", column="label", declared=declared)
    assert form == LabelForm("|", 3, ("a", "b")) == LabelForm.from_dict(form.to_dict())
    assert [Labels(declared, form).indices(row) for row in (*rows, [0, 1, 1])] == [[0, 2], [2], [1, 2]]
    indices = [["a", "b"], ["c"], ["b", "a", "c"], ["a"]]
    assert decide_form(indices, stated=(), separator="from_data", column="label", declared=declared)[0].length == 0


def test_shares_among_vectors_are_bad_rows_and_do_not_turn_the_others_into_names() -> None:
    rows = [[1.0, 0.0, 0.5], [0.0, 1.0, 1.0]]
    labels = Labels(["a", "b", "c"], form_of(*rows))
    assert labels.indices(rows[1]) == [1, 2]
    with pytest.raises(BadRow, match=r"must contain only 0 and 1, not 0\.5"):
        labels.indices(rows[0])
