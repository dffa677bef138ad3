"""Proves how classes of the data meet those that the recipe states and those that a checkpoint was trained with."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from finetune.errors import UserError
from finetune.tasks.batch import Batch
from finetune.tasks.class_outputs import class_answers, class_scores, label_tensor, name_of
from finetune.tasks.class_weights import class_counts
from finetune.tasks.classes import Classes, decide_classes
from finetune.tasks.facts import Facts


class _Rows(list[dict[str, Any]]):
    name, columns = "train", {"label": "label"}


def _decide(found: list[Any], stated: list[str], trained: list[str] | None) -> tuple[list[str], list[str]]:
    tables: Any = {"train": _Rows({"label": label} for label in found)}
    classes = decide_classes(tables, stated, trained, where="some/model", facts=Facts())
    return classes.names, classes.lookup.names


@pytest.mark.parametrize(
    ("found", "stated", "trained", "expected"),
    [
        (["b", "a"], [], None, (["a", "b"], ["a", "b"])),
        ([1, 0], ["no", "yes"], None, (["no", "yes"], ["0", "1"])),
        (["yes", "no"], ["no", "yes", "maybe"], None, (["no", "yes", "maybe"],) * 2),
        (["yes", "no"], [], ["yes", "no"], (["yes", "no"], ["yes", "no"])),  # the head's order, not the alphabet's
        (["yes", "no"], [], ["yes", "maybe", "no"], (["yes", "maybe", "no"],) * 2),
        ([0, 1], [], ["negative", "positive"], (["negative", "positive"], ["0", "1"])),
        (["a", "b"], [], ["LABEL_0", "LABEL_1"], (["a", "b"], ["a", "b"])),
        (["no", "yes"], ["no", "yes"], ["yes", "no"], (["yes", "no"], ["yes", "no"])),
    ],
)
def test_classes(found: list[Any], stated: list[str], trained: Any, expected: Any) -> None:
    assert _decide(found, stated, trained) == expected


def test_classes_survive_json() -> None:
    tables: Any = {"train": _Rows({"label": label} for label in (0, 1))}
    classes = decide_classes(tables, ["no", "yes"], None, where="some/model", facts=Facts())
    restored = Classes.from_dict(json.loads(json.dumps(classes.to_dict())))
    assert restored.names == ["no", "yes"] and [restored.lookup.index(label) for label in (0, "1")] == [0, 1]


@pytest.mark.parametrize(
    ("found", "stated", "trained"),
    [
        (["cat", "dog"], [], ["yes", "no"]),
        (["cat", "dog", "cow"], [], ["LABEL_0", "LABEL_1"]),
        ([0, 1], ["cat", "dog"], ["yes", "no"]),
        ([0, 1, 2], [], ["yes", "no"]),
    ],
)
def test_classes_that_do_not_fit_name_both_sides_and_the_option(found: Any, stated: Any, trained: Any) -> None:
    with pytest.raises(UserError, match="do not fit the head") as caught:
        _decide(found, stated, trained)
    assert all(name in str(caught.value) for name in [*map(str, stated or found), *trained])
    assert "options.new_head: true" in caught.value.remedy


def test_several_labels_as_tensors_names_and_counts() -> None:
    assert label_tensor([[0, 2], []], 3, several=True).tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert label_tensor([2, 0], 3, several=False).tolist() == [2, 0]
    assert name_of([1, 0, 1], ["a", "b", "c"]) == "a, c" and name_of([0, 0, 0], ["a", "b", "c"]) == "(none)"
    assert class_counts([[0, 2], [2], []], ["a", "b", "c"]) == {"a": 1, "b": 0, "c": 2}


def test_predictions_of_several_labels() -> None:
    logits = torch.tensor([[2.0, -1.0], [-3.0, 0.5]])
    batch = Batch((7, 9), {}, {"labels": torch.tensor([[1.0, 0.0], [1.0, 1.0]])})
    first, second = class_answers(logits, batch, ["x", "y"], [{"text": "a"}, {}], several=True)
    assert first.id == 7 and first.values["prediction"] == [1, 0] and first.shown == {"text": "a", "predicted": "x"}
    assert second.values["scores"] == pytest.approx(torch.sigmoid(logits[1]).tolist())
    assert second.id == 9 and second.shown == {"predicted": "y"}
    one, other = class_scores(logits, batch, ["x", "y"])
    assert (one.id, one.weight, one.reference) == (7, 1, {"reference": [1, 0]})
    assert (other.id, other.weight, other.shown) == (9, 1, {"label": "x, y"})
    assert one.loss == pytest.approx((torch.tensor([-2.0, -1.0]).exp().log1p()).mean().item())


def test_single_labels_that_look_like_lists_or_alike_are_reported() -> None:
    facts = Facts()
    found: Any = {"train": _Rows({"label": label} for label in ("['a', 'b']", "['b']", "Good", "['a']"))}
    assert len(decide_classes(found, [], None, where="some/model", facts=facts).names) == 4
    assert facts.notes == [
        """label: 3 of 4 classes look like lists, such as "['a', 'b']": each is one class; """
        "options.problem: multi_label reads the labels in them"
    ]
    facts, found = Facts(), {"train": _Rows({"label": label} for label in ("Good", "good", "[sic]"))}
    decide_classes(found, [], None, where="some/model", facts=facts)
    assert facts.notes == ["label: classes that look alike are kept apart: 'Good' and 'good'"]
