"""Tests that the order of classes is deterministic however labels are written, and that unknown labels are explained."""

import pytest

from finetune.data.bad_rows import BadRow
from finetune.data.labels import Labels, class_names, in_order, label_text, label_texts
from finetune.data.sources.rows import MemoryTable
from finetune.errors import UserError


def names_of(*labels, several=False):
    return class_names({"train": MemoryTable("train", [{"label": label} for label in labels])}, several=several)


def test_numbers_are_ordered_by_value_and_names_by_letter():
    assert names_of(10, 2, 1, 2) == names_of("10", "2", "1") == ["1", "2", "10"]
    assert names_of("b", "a", "10") == ["10", "a", "b"]
    assert in_order({"-1", "1", "0"}) == ["-1", "0", "1"]
    assert in_order({"01", "1", "2"}) == ["01", "1", "2"]


def test_one_label_written_in_several_ways_is_one_class():
    assert names_of(1, "1", 1.0, " 1 ", 0) == ["0", "1"]
    assert names_of(True, "true", False) == ["false", "true"]
    assert Labels(["0", "1"]).index(1.0) == Labels(["0", "1"]).index(" 1") == 1


@pytest.mark.parametrize("value", [None, "", "  ", 0.5, float("nan"), {"a": 1}, [1]])
def test_values_that_are_not_labels(value):
    with pytest.raises(BadRow):
        label_text(value)
    assert names_of("a", "b", value) == ["a", "b"]  # reported later, by encoding, with its location


def test_several_labels_per_row():
    assert label_texts("b| a|b|") == ["b", "a"] and label_texts(["x", 1]) == ["x", "1"] and label_texts([]) == []
    assert names_of("b|a", ["c"], several=True) == ["a", "b", "c"]
    assert Labels(["a", "b", "c"]).indices("c|a") == Labels(["a", "b", "c"]).indices(["a", "c"]) == [0, 2]


def test_an_unknown_label_is_explained():
    labels = Labels(["positive", "negative"])
    assert labels.names == ["positive", "negative"] and labels.index("negative") == 1 and len(labels) == 2
    with pytest.raises(BadRow, match="'Postive' does not occur in the training data; did you mean 'positive'"):
        labels.index("Postive")
    with pytest.raises(BadRow, match="the 2 classes are positive, negative"):
        labels.index("42")
    with pytest.raises(BadRow):
        labels.indices(["positive", "unsure"])


def test_class_names_declared_by_the_data_take_precedence():
    table = MemoryTable("train", [{"label": "yes"}])
    table.classes = {"label": ["no", "yes", "never seen"]}
    assert class_names({"train": table}) == ["no", "yes", "never seen"]


def test_one_class_or_none_is_refused():
    with pytest.raises(UserError, match="holds only 'a'"):
        names_of("a", "a")
    with pytest.raises(UserError, match="holds none"):
        names_of(None)
