"""Proves how a chosen and a rejected reply are read, however they are written, and what is wrong with a bad pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.tasks.preference.data import ReplyEncoder
from finetune.tasks.text.padding_free import split_rows
from finetune.tasks.text.preference_pairs import read_pair
from tests.prepared import Prepared, prepare
from tests.unit.tasks.text.templates import LLAMA_3, make_tokenizer

USER, GOOD, BAD = (
    {"role": "user", "content": "Hi"},
    *({"role": "assistant", "content": x} for x in ("Good day.", "No")),
)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Good day.", "rejected": "No"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {
            "messages": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Good day."},
            "rejected": {"from": "gpt", "value": "No"},
        },
        {"prompt": json.dumps([USER]), "chosen": json.dumps([GOOD]), "rejected": "No"},
    ],
)
def test_one_pair_in_many_forms(row: dict[str, Any]) -> None:
    chosen, rejected = read_pair(row)
    assert chosen.before == rejected.before == [USER]
    assert (chosen.message, rejected.message) == (GOOD, BAD)
    assert read_pair(row, "Be kind.")[0].before == [{"role": "system", "content": "Be kind."}, USER]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Hi", "chosen": "a"}, "no rejected"),
        ({"prompt": "Hi", "chosen": " ", "rejected": "b"}, "chosen is empty"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "Hi", "completion": "a", "label": True}, "no chosen; the row has prompt, completion, label"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "images": ["a.png"]}, "images contains an image"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": "Hi", "chosen": [USER], "rejected": "a"}, "chosen does not end with a reply of the assistant"),
        ({"prompt": [USER, GOOD], "chosen": "a", "rejected": "b"}, "the prompt ends with a reply"),
        ({"prompt": "Ho", "chosen": [USER, GOOD], "rejected": "b"}, "chosen and rejected answer different prompts"),
    ],
)
def test_bad_pairs(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        read_pair(row)


CALLING, OTHER = (
    {"role": "assistant", "content": None, "tool_calls": [{"name": name, "arguments": {}}]} for name in ("look", "wait")
)


@pytest.mark.parametrize(
    ("row", "chosen", "rejected"),
    [
        ({"prompt": "2+2?", "chosen": 4, "rejected": "5"}, "4", "5"),
        ({"prompt": "2+2?", "chosen": 4.5, "rejected": 5}, "4.5", "5"),
        ({"prompt": "True?", "chosen": True, "rejected": False}, "true", "false"),
        ({"prompt": "JSON?", "chosen": {"a": 1}, "rejected": [1, "ü"]}, '{"a": 1}', '[1, "ü"]'),
        ({"prompt": 7, "chosen": "[{", "rejected": '[{"a": 1}]'}, "[{", '[{"a": 1}]'),
    ],
)
def test_replies_of_any_json_type_are_text(row: dict[str, Any], chosen: str, rejected: str) -> None:
    assert [reply.message["content"] for reply in read_pair(row)] == [chosen, rejected]


@pytest.mark.parametrize(
    ("row", "before"),
    [
        ({"prompt": "Hi", "history": [["a", "b"]]}, ["a", "b", "Hi"]),
        ({"prompt": "Add.", "input": "1 1"}, ["Add.\n\n1 1"]),
        ({"input": {"messages": [USER], "tools": [{"name": "look"}]}}, ["Hi"]),
        ({"prompt": {"messages": [USER]}}, ["Hi"]),
    ],
)
def test_what_comes_before_a_reply(row: dict[str, Any], before: list[str]) -> None:
    for reply in read_pair({**row, "chosen": [GOOD], "rejected": [BAD]}):
        assert [message["content"] for message in reply.before] == before
        assert len(reply.tools) == ("input" in row and not isinstance(row["input"], str))


def test_replies_may_be_tool_calls_and_go_on_from_the_prompt() -> None:
    chosen, rejected = read_pair({"prompt": "Hi", "chosen": [CALLING], "rejected": [OTHER]})
    assert chosen.message["tool_calls"][0]["function"]["name"] == "look" and rejected.message["content"] == ""
    assert chosen.texts == ["Hi", '{"name": "look", "arguments": {}}']
    result = {"role": "tool", "content": "4"}
    row = {"prompt": "Hi", "chosen": [CALLING, result, GOOD], "rejected": [CALLING, result, BAD]}
    assert [message["role"] for message in read_pair(row)[0].before] == ["user", "assistant", "tool"]
    with pytest.raises(BadRow, match="different prompts"):
        read_pair({**row, "rejected": [OTHER, result, BAD]})


def test_a_prompt_that_is_in_neither_conversation_is_reported() -> None:
    row = {"prompt": "Something else", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert read_pair(row)[0].notices == ("the prompt is not used: chosen holds a whole conversation without it",)
    assert read_pair({**row, "prompt": "Hi"})[0].notices == ()


TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _read(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Prepared:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = {"source": "llama", "init": "config", "tokenizer": "train:300", "config": TINY}
    values = {"name": "x", "task": "reward_model", "model": model, "data": {"train": str(path)}, **sections}
    return prepare({**values, "training": {"precision": "fp32"}})


ROWS = [
    {"prompt": "Hi", "chosen": "Good day.", "rejected": "No"},
    {"prompt": "Go", "chosen": "Yes, at once.", "rejected": "Never, ever."},
]


def test_the_loss_is_the_papers(tmp_path: Path) -> None:
    prepared = _read(tmp_path, ROWS, options={"centre": 0.1})
    batch = prepared.batch([0, 1])
    texts = prepared.artifacts.processor.batch_decode(split_rows(batch.inputs), skip_special_tokens=True)
    assert ["Good" in texts[0], "at once" in texts[1], "No" in texts[2], "Never" in texts[3]] == [True] * 4
    outputs = prepared.task.forward(prepared.build(), batch)
    outputs.logits = torch.tensor([[2.0], [0.5], [1.0], [1.5]])
    by_hand = -torch.log(torch.sigmoid(torch.tensor([1.0, -1.0]))).sum() + 0.1 * (3.0**2 + 2.0**2)
    assert prepared.task.loss_sum(prepared.artifacts, outputs, batch).item() == pytest.approx(by_hand.item(), rel=1e-6)
    first, second = prepared.answers(outputs, batch)
    assert first.values == {"chosen_reward": 2.0, "rejected_reward": 1.0} and second.values["rejected_reward"] == 1.5


def test_bad_pairs_are_reported_with_their_place(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "Hi", "chosen": "a"}, {"prompt": "Hi", "chosen": "", "rejected": "b"}]
    with pytest.raises(UserError) as caught:
        _read(tmp_path, rows)
    assert "train.jsonl:3: no value in column rejected" in str(caught.value)
    (tmp_path / "train.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.jsonl:3: chosen is empty"):
        _read(tmp_path, [*ROWS, rows[3]])


def test_pairs_that_are_equal_after_the_cut_are_left_out_and_reported(tmp_path: Path) -> None:
    long = "the same words again and again " * 9
    rows = [*ROWS, {"prompt": "Hi", "chosen": long + "good", "rejected": long + "bad"}]
    for task in ("reward_model", "preference"):
        prepared = _read(tmp_path, rows, task=task, options={"max_length": 48})
        assert list(prepared.datasets["train"].ids) == [0, 1]
        (note,) = [note for note in prepared.facts.notes if "equal" in note]
        assert note.startswith("train: 1 row: chosen and rejected are equal within options.max_length 48")
        assert note.endswith("train.jsonl:3)")
        assert len(_read(tmp_path, rows, task=task, options={"max_length": 512}).datasets["train"]) == 3
        with pytest.raises(UserError, match=r"no example is left of 1 row\b"):
            _read(tmp_path, rows[2:], task=task, options={"max_length": 48})


@pytest.mark.parametrize(
    ("task", "model", "on_long"),
    [
        ("reward_model", "llama", "truncate"),
        ("reward_model", "llama", "drop"),
        ("reward_model", "bert", "drop"),
        ("preference", "llama", "drop"),
    ],
)
def test_a_prompt_that_leaves_no_room_for_a_reply_is_the_reason_given(tmp_path: Path, task, model, on_long) -> None:
    long = "the same words again and again " * 9
    rows = [
        *ROWS,
        {"prompt": long, "chosen": "good", "rejected": "bad"},
        {"prompt": "Hi", "chosen": long, "rejected": "bad"},
    ]
    options = {"max_length": 48, "on_long": on_long}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    source = {"source": model, "init": "config", "tokenizer": "train:300", "config": shape}
    prepared = _read(tmp_path, rows, task=task, options=options, model=source)
    assert list(prepared.datasets["train"].ids) == ([0, 1, 3] if on_long == "truncate" else [0, 1])
    (note,) = [note for note in prepared.facts.notes if "prompt alone" in note]
    assert note.startswith("train: 1 row: the prompt alone fills options.max_length 48: the row is left out")
    assert note.endswith("train.jsonl:3)") and not any("equal" in note for note in prepared.facts.notes)


def test_pairs_that_a_template_makes_equal_are_bad() -> None:
    encoder = ReplyEncoder(make_tokenizer(LLAMA_3), False, 100, "truncate", "")
    (bad,) = encoder.encode([{"prompt": "Hi", "chosen": "a", "rejected": "a "}], with_targets=True)
    assert isinstance(bad, BadRow) and "the same as the chat template writes them" in str(bad)


@pytest.mark.parametrize(
    "row",
    [
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Bye\n\nHuman\n\nAssistant: Good day.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Bye\n\nHuman\n\nAssistant: No",
        },
        {
            "prompt": "Human: Hi\n\nAssistant: Yes?\n\nHuman: Bye\n\nHuman\n\nAssistant:",
            "chosen": "Good day.",
            "rejected": "No",
        },
    ],
)
def test_dialogs_written_as_text_are_turns(row: dict[str, Any]) -> None:
    chosen, rejected = read_pair(row)
    assert [(one["role"], one["content"]) for one in chosen.before] == [
        ("user", "Hi"),
        ("assistant", "Yes?"),
        ("user", "Bye\n\nHuman"),
    ]
    assert (chosen.message, rejected.message) == (GOOD, BAD)
    assert chosen.notices == ("a dialog written as text (Human:, Assistant:) is read as turns",)


def test_speakers_inside_of_a_text_do_not_make_it_a_dialog() -> None:
    chosen, _ = read_pair({"prompt": "Hi", "chosen": "I am no\n\nHuman: being", "rejected": "No"})
    assert chosen.before == [USER] and chosen.message["content"] == "I am no\n\nHuman: being" and not chosen.notices
