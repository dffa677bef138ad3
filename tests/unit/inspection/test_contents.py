"""Proves which rows count as equal: by their texts, and by who says them."""

from __future__ import annotations

from typing import Any

from finetune.inspection.contents import content_hash, row_parts, row_text


def _hash(row: dict[str, Any]) -> int:
    roles = ("messages", "text")
    return content_hash(row, row_text(row, roles), roles)


def _talk(*speakers: str, key: str = "role", said: str = "content") -> dict[str, Any]:
    texts = ("Hi", "Good day.", "Bye")
    return {"messages": [{key: who, said: text} for who, text in zip(speakers, texts, strict=False)]}


def test_conversations_that_differ_in_speakers_only_are_not_equal() -> None:
    asked = _hash(_talk("user", "assistant"))
    assert asked == _hash(_talk("user", "assistant")) == _hash(_talk("human", "gpt", key="from", said="value"))
    assert asked != _hash(_talk("assistant", "user"))
    assert asked != _hash(_talk("system", "user"))


def test_texts_without_speakers_are_equal_but_for_blanks_around_them() -> None:
    assert _hash({"text": " Hi"}) == _hash({"text": "Hi\n"}) != _hash({"text": "Ho"})
    assert _hash({"text": " "}) == 0


def test_texts_have_the_speakers_of_their_turns() -> None:
    turn = {"role": "human", "content": [{"type": "text", "text": "Look"}, {"text": 5}], "name": "Ann"}
    row = {"system": "Be kind.", "messages": [turn, {"from": "gpt", "value": "Yes"}]}
    user = ["text", "Look", "5", "Ann"]
    parts = [("", "Be kind."), *(("user", text) for text in user), ("assistant", "Yes")]
    assert row_parts(row, ("system", "messages")) == parts
    assert row_text(row, ("system", "messages")) == "\n".join(text for _, text in parts)
