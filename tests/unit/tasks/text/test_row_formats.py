"""Proves which tokens of a row are supervised, in every format: shown as the literal text of the supervised tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.data.bad_rows import BadRow
from finetune.models.tokenizer import load_tokenizer
from finetune.recipe.model import ModelSection
from finetune.tasks.text.chat import ensure_template
from finetune.tasks.text.row_formats import RowEncoder, form_of, row_texts

ALPACA = {"instruction": "Add.", "input": "1 1", "output": "2"}
TALK = {
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Bye."},
    ]
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    model = ModelSection(source="llama", init="config", tokenizer="train:300")
    return load_tokenizer(model, lambda: iter(["Add. 1 1 2 Hi Yes? Bye."]))


def _encoder(tokenizer: Any, *, template: str = "auto", **options: Any) -> RowEncoder:
    own = ensure_template(tokenizer, plain=template == "plain")
    settings = {"form": "auto", "system": "", "train_on": "reply", "limit": 200, "on_long": "truncate", **options}
    return RowEncoder(tokenizer, own_template=own, **settings)


def _example(encoder: RowEncoder, row: dict[str, Any], *, with_targets: bool = True) -> dict[str, Any]:
    """The example of one row. Raises: BadRow."""
    found = encoder.encode([row], with_targets=with_targets)[0]
    if isinstance(found, BadRow):
        raise found
    return found


def _shown(tokenizer: Any, example: dict[str, Any]) -> tuple[str, list[str]]:
    ids, spans = example["input_ids"], example["spans"]
    pairs = zip(spans[::2], spans[1::2], strict=True)
    return tokenizer.decode(ids), [tokenizer.decode(ids[start:end]) for start, end in pairs]


def test_alpaca_with_a_chat_template(tokenizer: Any) -> None:
    example = _example(_encoder(tokenizer), ALPACA)
    assert _shown(tokenizer, example) == (
        "<|im_start|>user\nAdd.\n\n1 1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n",
        ["2<|im_end|>"],
    )
    assert tokenizer.decode(example["input_ids"][: example["reply_start"]]).endswith("<|im_start|>assistant\n")


def test_alpaca_and_prompts_in_the_plain_layout() -> None:
    model = ModelSection(source="llama", init="config", tokenizer="train:300")
    tokenizer = load_tokenizer(model, lambda: iter(["Add. 1 1 2"]))
    encoder = _encoder(tokenizer, template="plain")
    text, supervised = _shown(tokenizer, _example(encoder, ALPACA))
    assert text.endswith("### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n2<|endoftext|>")
    assert supervised == ["2<|endoftext|>"]
    assert _shown(tokenizer, _example(encoder, {"prompt": "1 + 1 =", "completion": " 2"})) == (
        "1 + 1 = 2<|endoftext|>",
        [" 2<|endoftext|>"],
    )


def test_every_turn_is_learned_and_a_sample_asks_for_the_last(tokenizer: Any) -> None:
    example = _example(_encoder(tokenizer), TALK)
    assert _shown(tokenizer, example)[1] == ["Yes?<|im_end|>", "Bye.<|im_end|>"]
    assert tokenizer.decode(example["input_ids"][example["reply_start"] :]) == "Bye.<|im_end|>\n"


def test_plain_text_is_learned_whole_but_for_its_first_token(tokenizer: Any) -> None:
    example = _example(_encoder(tokenizer), {"text": "Hi Bye"})
    assert example["spans"] == [1, len(example["input_ids"])]
    assert tokenizer.decode(example["input_ids"]) == "Hi Bye<|endoftext|>"


def test_a_system_prompt_is_the_rows_own_or_the_recipes(tokenizer: Any) -> None:
    encoder = _encoder(tokenizer, system="Be kind.")
    assert _shown(tokenizer, _example(encoder, ALPACA))[0].startswith("<|im_start|>system\nBe kind.<|im_end|>\n")
    assert "Be short." in _shown(tokenizer, _example(encoder, {**ALPACA, "system": "Be short."}))[0]


def test_train_on_all(tokenizer: Any) -> None:
    example = _example(_encoder(tokenizer, train_on="all"), TALK)
    assert example["spans"] == [1, len(example["input_ids"])]
    assert tokenizer.decode(example["input_ids"][example["reply_start"] :]).startswith("Bye.")


def test_a_cut_never_leaves_a_row_without_anything_to_learn(tokenizer: Any) -> None:
    whole = _example(_encoder(tokenizer), TALK)
    first, last = whole["spans"][0], len(whole["input_ids"])
    for limit in range(1, last + 1):
        encoder = _encoder(tokenizer, limit=limit)
        if limit <= first:
            with pytest.raises(BadRow, match=f"the prompt has {first} tokens, longer than the limit"):
                _example(encoder, TALK)
            continue
        example = _example(encoder, TALK)
        assert example["input_ids"] == whole["input_ids"][:limit]
        assert sum(example["spans"][1::2]) > sum(example["spans"][::2])
        assert max(example["spans"]) <= limit and 1 <= example["reply_start"] < limit


def test_long_rows_are_dropped_or_reported(tokenizer: Any) -> None:
    assert _example(_encoder(tokenizer, limit=9, on_long="drop"), TALK)["input_ids"] == []
    with pytest.raises(BadRow, match=r"more than options\.max_length 9"):
        _example(_encoder(tokenizer, limit=9, on_long="error"), TALK)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"label": 1}, "neither messages"),
        ({**ALPACA, "output": "  "}, "reply is empty"),
        ({"instruction": 3.5, "output": True}, "output is bool"),
        ({"text": " "}, "text is empty"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no assistant turn"),
    ],
)
def test_a_row_with_nothing_to_learn_is_bad(tokenizer: Any, row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        _example(_encoder(tokenizer), row)


def test_forms_and_texts() -> None:
    assert form_of({**ALPACA, "text": "all of it"}) == "alpaca"
    assert form_of({"prompt": "a", "completion": "b"}) == "prompt_completion"
    assert list(row_texts(ALPACA, "auto")) == ["Add.", "1 1", "2"]
    assert list(row_texts(TALK, "auto")) == ["Hi", "Yes?", "Bye", "Bye."]
    assert list(row_texts({"label": 1}, "auto")) == []


@pytest.mark.parametrize(
    ("media", "kind"),
    [({"image": "a.jpg"}, "an image"), ({"images": [{"bytes": b"x"}]}, "an image"), ({"videos": ["v.mp4"]}, "a video")],
)
@pytest.mark.parametrize("row", [TALK, ALPACA, {"prompt": "Hi", "completion": "Yes?"}])
def test_pictures_beside_a_conversation_are_refused_by_name(
    tokenizer: Any, row: dict[str, Any], media: dict[str, Any], kind: str
) -> None:
    for with_targets in (True, False):
        with pytest.raises(BadRow, match=f"{next(iter(media))} contains {kind}, but this task reads only text"):
            _example(_encoder(tokenizer), {**row, **media}, with_targets=with_targets)
    assert _example(_encoder(tokenizer), {**row, "images": [], "image": ""})["spans"]
    assert _example(_encoder(tokenizer), {"text": "Hi", **media})["input_ids"]


def test_a_row_that_is_one_turn_of_a_conversation_is_reported(tokenizer: Any) -> None:
    for row in ({"role": "assistant"}, {"from": "human"}, {"role": "prompter"}):
        assert "one turn of a conversation" in _example(_encoder(tokenizer), {"text": "Hi", **row})["notices"][0]
    for other in ({}, {"role": "nurse"}, {"from": "http://x"}, {"role": 3}):
        assert not _example(_encoder(tokenizer), {"text": "Hi", **other})["notices"]


def test_messages_in_the_notation_of_python(tokenizer: Any) -> None:
    own = _example(_encoder(tokenizer), TALK)
    assert _example(_encoder(tokenizer), {"messages": str(TALK["messages"])}) == own
    with pytest.raises(BadRow, match="neither a list nor JSON"):
        _example(_encoder(tokenizer), {"messages": "[open('x')]"})
    with pytest.raises(BadRow, match=r"message 1 has no role \(role or from\); it has human, assistant"):
        _example(_encoder(tokenizer), {"messages": [{"human": "Hi", "assistant": "Yes?"}]})


@pytest.mark.parametrize("as_text", [True, False])
def test_a_reply_of_calls_is_learned_as_tool_calls(tokenizer: Any, as_text: bool) -> None:
    calls, tools = [{"name": "look", "arguments": {"at": "sky"}}], [{"name": "look", "parameters": {}}]
    written = json.dumps(calls) if as_text else calls
    row = {"instruction": "Look.", "output": written, "tools": json.dumps(tools)}
    example = _example(_encoder(tokenizer, limit=900), row)
    talk = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": None, "tool_calls": calls}]
    expected = _example(_encoder(tokenizer, limit=900), {"messages": talk, "tools": tools})
    assert example["input_ids"] == expected["input_ids"] and example["spans"] == expected["spans"]
    assert "learned as tool calls" in example["notices"][0]
    other = _encoder(tokenizer, limit=900).encode([{**row, "tools": json.dumps([{"name": "wait", "parameters": {}}])}])[
        0
    ]
    assert not other["notices"] if as_text else isinstance(other, BadRow)
