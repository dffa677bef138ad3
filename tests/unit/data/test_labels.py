"""Tests that the order of classes is deterministic however labels are written, and that unknown labels are explained."""

import pytest

from finetune.data.bad_rows import BadRow
from finetune.data.label_forms import NAMES, split_labels
from finetune.data.labels import Labels, in_order, label_text, look_alikes
from finetune.data.prepare.label_survey import class_names, label_notes
from finetune.errors import UserError
from tests.tables import MemoryTable


def names_of(*labels, several=False):
    table = MemoryTable("train", [{"label": label} for label in labels])
    return class_names({"train": table}, kind=NAMES if several else None)


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


@pytest.mark.parametrize(
    ("written", "one"),
    [
        ((True, "True", "true", "TRUE"), "true"),
        ((1, "1", 1.0, "1.0", " 1 ", "1."), "1"),
        (("cafe\u0301", "caf\u00e9"), "caf\u00e9"),
        (("New  York", " New York", "New\u00a0York\n"), "New York"),
    ],
)
def test_ways_to_write_one_class(written, one):
    assert set(names_of(*written, "other")) == {one, "other"}
    assert {Labels([one, "other"]).index(value) for value in written} == {0}
    assert {Labels([written[0], "other"]).index(value) for value in written} == {0}


def test_one_way_to_write_a_class_is_its_name():
    assert names_of("True", "False") == ["False", "True"] and names_of(True, False) == ["false", "true"]
    assert names_of("1.0", "0.0", "10.0") == ["0.0", "1.0", "10.0"]


def test_case_tells_classes_apart():
    assert names_of("Good", "good", "bad") == ["Good", "bad", "good"]
    assert look_alikes(["Good", "bad", "good", "bad\u200b", "01", "1", "\ufb01n", "fin", "x"]) == [
        ["Good", "good"],
        ["bad", "bad\u200b"],
        ["01", "1"],
        ["\ufb01n", "fin"],
    ]


def test_what_was_unified_is_reported_with_counts():
    table = MemoryTable("train", [{"label": label} for label in ["True", "true", "true", "false", None, []]])
    labels = Labels(class_names({"train": table}))
    (note,) = label_notes(table, "label", labels, kind=None)
    assert note.startswith("train: label: 1 class is written in more than one way")
    assert 'true: "true" 2, "True" 1' in note
    other = MemoryTable("validation", [{"label": "False"}, {"label": "true"}])
    (note,) = label_notes(other, "label", labels, kind=None)
    assert 'false: "False" 1' in note and "true" not in note.split("training:")[1].replace("false", "")
    assert label_notes(MemoryTable("test", [{"label": "true"}]), "label", labels, kind=None) == []


def test_rows_without_a_label_are_counted():
    table = MemoryTable("train", [{"label": label} for label in (["a"], [], None, "", "a|b")])
    (note,) = label_notes(table, "label", Labels(["a", "b"]), kind=NAMES)
    assert note == "train: 3 of 5 rows have no label: none of the classes applies to them"


def test_several_labels_per_row():
    assert split_labels("b| a|b|", NAMES) == ["b", " a", "b"] and split_labels(["x", 1], NAMES) == ["x", 1]
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
    with pytest.raises(UserError, match=r"holds none \(a label must be a name or an integer, not dict"):
        names_of({"a": 1})
