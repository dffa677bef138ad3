"""Proves that the texts of tokens give the text again, and who says each token, for several templates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoTokenizer

from finetune.inspection.pieces import CONTINUED, group_turns, row_turns, token_roles, token_texts, written_roles
from finetune.models.source import resolve_model
from tests.e2e.tiny import PACKAGE
from tests.unit.inspection.inspected import Data


@pytest.fixture
def tokenizer(data: Callable[..., Data]) -> Any:
    """Byte-level, with ChatML."""
    return data("causal_lm").inspection().artifacts.processor


@pytest.mark.parametrize("text", ["river stone", "  two blanks\n\nlines", "naïve 日本語 👍🏽 ok", "été"])
def test_the_texts_of_tokens_give_the_text_again(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts).replace(CONTINUED, "") == text


def test_word_pieces(data: Callable[..., Data]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(PACKAGE))
    ids = tokenizer("unbelievably good")["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert "".join(texts) == "[CLS] unbelievably good [SEP]"
    roles = token_roles(tokenizer, ids, texts, {"text": "unbelievably good", "label": 1}, "")
    assert roles == ["special", *["text"] * (len(ids) - 2), "special"]


def said(tokenizer: Any, row: dict[str, Any], messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    """(speaker, what is said without marks and template text) of each turn."""
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    texts = token_texts(tokenizer, ids)
    roles = token_roles(tokenizer, ids, texts, row, "")
    return [
        (speaker, "".join(texts[place] for place in range(start, end) if roles[place] not in ("special", "template")))
        for speaker, start, end in group_turns(roles, texts)
    ]


def test_turns_whose_text_is_a_word_of_the_template(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "assistant"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "n"},
    ]
    expected = [(turn["role"], turn["content"]) for turn in messages]
    assert said(tokenizer, {"messages": messages}, messages) == expected


def test_columns_speak_as_they_are_named(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Add.\n\n1 1"}, {"role": "assistant", "content": "2"}]
    row = {"instruction": "Add.", "input": "1 1", "output": "2"}
    assert said(tokenizer, row, messages) == [("user", "Add.1 1"), ("assistant", "2")]


def test_a_system_prompt_and_earlier_turns_of_other_columns_are_their_speakers(tokenizer: Any) -> None:
    said_before = [{"role": "user", "content": "river"}, {"role": "assistant", "content": "a stone"}]
    now = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "2"}]
    talk = [{"role": "system", "content": "Be brief."}, *said_before, *now]
    row = {"instruction": "Add.", "output": "2", "system": "Be brief.", "history": [["river", "a stone"]]}
    assert said(tokenizer, row, talk) == [(turn["role"], turn["content"]) for turn in talk]
    assert said(tokenizer, {"messages": talk[1:], "system": "Be brief."}, talk)[0] == ("system", "Be brief.")


def test_a_turn_that_is_cut_is_still_its_speaker(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "river"}, {"role": "assistant", "content": "stone " * 50}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][:60]
    roles = token_roles(tokenizer, ids, token_texts(tokenizer, ids), {"messages": messages}, "")
    assert roles[-10:] == ["assistant"] * 10


def test_each_reply_of_a_pair_is_found_in_its_own_sequence() -> None:
    row = {"prompt": "p", "chosen": [{"role": "assistant", "content": "yes"}], "rejected": "no"}
    assert row_turns(row, "chosen") == [("user", "p"), ("assistant", "yes")]
    assert row_turns(row, "rejected") == [("user", "p"), ("assistant", "no")]


def test_marks_belong_to_the_turn_that_they_end() -> None:
    roles = ["special", "template", "user", "special", "template", "special", "template", "assistant", "special"]
    texts = ["<s>", "user\n", "hi", "<e>", "\n", "<s>", "assistant\n", "ho", "<e>"]
    assert group_turns(roles, texts) == [("user", 0, 5), ("assistant", 5, 9)]
    roles = ["user", "special", "assistant", "special", "template", "tool"]
    texts = ["hi", "<call>", "f()", "<e>", "\n", "4"]
    learned = [False, True, True, True, False, False]
    assert group_turns(roles, texts, learned) == [("user", 0, 1), ("assistant", 1, 5), ("tool", 5, 6)]
    assert group_turns(["template", "special"], ["x", "<e>"]) == [("template", 0, 2)]
    assert group_turns([], []) == []


def test_a_tokenizer_that_changes_case_and_blanks() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(PACKAGE))
    row = {"source": "Über  Größe,\nAND more", "target": "x"}
    ids = tokenizer(f"translate: {row['source']}")["input_ids"]
    texts = token_texts(tokenizer, ids)
    roles = token_roles(tokenizer, ids, texts, {**row, "system": "translate"}, "source")
    spoken = "".join(text for text, role in zip(texts, roles, strict=True) if role == "text")
    assert spoken.replace(" ", "") == "ubergroße,andmore"
    assert roles[0] == roles[-1] == "special"
    assert roles[1] == "system"


def test_what_a_model_learns_to_write_is_the_assistants() -> None:
    """A call of a tool, which the template writes out of the row's values; not the text of others, with train_on: all."""
    roles = ["special", "user", "template", "special", "template", "special", "template"]
    assert written_roles(roles, [(3, 6)])[2:] == ["template", "special", "assistant", "special", "template"]
    assert written_roles(roles, [(0, 7)]) == roles
