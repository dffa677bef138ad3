"""Proves what users read of an answer, against values computed by hand: classes, sets of classes, tags, entities, texts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.tasks.batch import RecordOptions
from finetune.tasks.records import class_fields, class_record, figure, refuse_options, text_fields, text_record
from finetune.tasks.text.splitting import split_words
from finetune.tasks.token_classification.record import tag_fields, tag_record
from finetune.tasks.vision.boxes import xywh

NAMES = ["bad", "good", "mixed"]
VALUES = {"prediction": 1, "scores": [0.25, 0.6250000238418579, 0.125]}


def test_one_class() -> None:
    record = class_record(VALUES, NAMES, RecordOptions(), several=False)
    assert record == {"label": "good", "score": 0.625}
    assert record.keys() == class_fields(RecordOptions(), several=False).keys()


def test_the_likeliest_classes() -> None:
    options = RecordOptions(top_k=2)
    record = class_record(VALUES, NAMES, options, several=False)
    assert record["labels"] == [{"label": "good", "score": 0.625}, {"label": "bad", "score": 0.25}]
    assert record.keys() == class_fields(options, several=False).keys()
    every = class_record(VALUES, NAMES, RecordOptions(top_k=9), several=False)
    assert [one["label"] for one in every["labels"]] == ["good", "bad", "mixed"]


def test_equal_scores_begin_with_the_prediction() -> None:
    values = {"prediction": 2, "scores": [0.5, 0.0, 0.5]}
    record = class_record(values, NAMES, RecordOptions(top_k=2), several=False)
    assert record["label"] == "mixed" and [one["label"] for one in record["labels"]] == ["mixed", "bad"]


@pytest.mark.parametrize(
    ("threshold", "expected"), [(None, ["good", "bad"]), (0.7, ["good"]), (0.0, ["good", "bad", "mixed"])]
)
def test_any_number_of_classes(threshold: float | None, expected: list[str]) -> None:
    values = {"prediction": [1, 1, 0], "scores": [0.5, 0.75, 0.1]}
    record = class_record(values, NAMES, RecordOptions(threshold=threshold), several=True)
    assert [one["label"] for one in record["labels"]] == expected


def test_tags_of_a_list_of_words_have_entities_in_words() -> None:
    names = ["B-loc", "I-loc", "O"]
    values = {"tags": [0, 1, 2, 2], "tag_scores": [0.5, 0.75, 0.9, None], "words": ["New", "York", "is", "big"]}
    record = tag_record(values, names)
    assert record == {
        "words": ["New", "York", "is", "big"],
        "tags": ["B-loc", "I-loc", "O", None],
        "scores": [0.5, 0.75, 0.9, None],
        "entities": [{"entity": "loc", "score": 0.625, "start": 0, "end": 2, "text": "New York"}],
    }
    assert record.keys() == tag_fields(names).keys()


def test_entities_of_a_plain_text_have_characters() -> None:
    text = "In  New\tYork, 2x"
    offsets = split_words(text)
    words = [text[start:end] for start, end in offsets]
    assert words == ["In", "New", "York", ",", "2x"]
    values = {
        "tags": [2, 0, 1, 2, 2],
        "tag_scores": [1.0] * 5,
        "words": words,
        "offsets": [list(pair) for pair in offsets],
        "text": text,
    }
    (entity,) = tag_record(values, ["B-loc", "I-loc", "O"])["entities"]
    assert (entity["start"], entity["end"], entity["text"]) == (4, 12, "New\tYork")
    assert text[entity["start"] : entity["end"]] == entity["text"]


@pytest.mark.parametrize("names", [["NOUN", "VERB"], ["0", "1"], ["LABEL_0", "LABEL_1"]])
def test_tags_that_name_no_entities_have_none(names: list[str]) -> None:
    record = tag_record({"tags": [0], "tag_scores": [1.0], "words": ["a"]}, names)
    assert "entities" not in record and "entities" not in tag_fields(names)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b", ["a", "b"]),
        ("(Ann's U.S.-made)", ["(", "Ann's", "U.S.-made", ")"]),
        ('"Yes!?"', ['"', "Yes", "!", "?", '"']),
        ("@ann #now $5 !", ["@ann", "#now", "$", "5", "!"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा", "।"]),
        ("我在Oslo。", ["我", "在", "Oslo", "。"]),
        ("\u00a0x\u2003y\n", ["x", "y"]),
        ("...", [".", ".", "."]),
        ("", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    spans = split_words(text)
    assert [text[start:end] for start, end in spans] == words
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_texts() -> None:
    values = {"text": "Hi.", "finish_reason": "stop", "logprobs": [{"token": "Hi", "logprob": -0.1}]}
    assert text_record(values, RecordOptions()) == {"text": "Hi.", "finish_reason": "stop"}
    whole = text_record(values, RecordOptions(logprobs=True))
    assert whole["logprobs"] == [{"token": "Hi", "logprob": -0.1}]
    assert whole.keys() == text_fields(RecordOptions(logprobs=True)).keys()


def test_numbers_keep_what_float32_has() -> None:
    assert figure(0.30000001192092896) == 0.3 and figure(1.2345678e-9) == 1.234568e-09
    assert math.copysign(1, figure(-0.0)) == 1, "zero has no sign"
    assert all(math.copysign(1, side) == 1 for side in xywh([[-0.001, 0.0, 4.0, 8.0]])[0])
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(BadRow, match="not a finite number"):
            figure(value)


@pytest.mark.parametrize(
    ("values", "record"),
    [
        ({"prediction": 0, "scores": [math.nan] * 3}, lambda v: class_record(v, NAMES, RecordOptions(), several=False)),
        ({"tags": [0], "tag_scores": [math.nan], "words": ["a"]}, lambda v: tag_record(v, ["O"])),
    ],
)
def test_an_answer_that_is_not_finite_is_no_answer(values: dict[str, Any], record: Any) -> None:
    with pytest.raises(BadRow, match="not a finite number"):
        record(values)


def test_options_without_use_are_refused_by_name() -> None:
    refuse_options(RecordOptions(top_k=3), "text_classification", takes=("top_k",))
    with pytest.raises(UserError, match="--threshold does not apply to reward_model") as caught:
        refuse_options(RecordOptions(threshold=0.3), "reward_model", takes=())
    assert "Leave it out" in caught.value.remedy
