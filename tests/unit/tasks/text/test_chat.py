"""Proves that of a conversation exactly the assistant's words and end-of-turn tokens are supervised, for any chat template.

The reference is written by hand: the text that the supervised tokens decode to, turn by turn.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
from finetune.models.chat_layouts import CHATML
from finetune.models.tokenizer import _train as train_bpe
from finetune.tasks.text.chat import chat_encoder, ensure_template
from finetune.tasks.text.conversations import read_turns
from finetune.tasks.text.drafts import Tokens, token_spans, tokenize
from finetune.tasks.text.learned_turns import to_learn

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Two words?"},
    {"role": "assistant", "content": "  Good day\n"},
]

CHATML_UNMARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Marks that leave the end-of-turn token outside: it must be supervised all the same.
CHATML_SHORT_MARKS = CHATML.replace(
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}",
    "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>\\n' }}",
)
LLAMA_3 = (
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|head|>' + m['role'] + '<|/head|>\\n\\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ '<|begin|>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<|head|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + m['content'] | trim + '<|eot|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>model\\n' }}{% endif %}"
)
MISTRAL = (  # no header before a reply, a space instead, and the end-of-text token after each
    "{{ '<|begin|>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # as in Qwen 3: an empty thought before the last reply alone, so a prefix rendered earlier differs
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WEIRD = (  # upper-case user, numbered turns, end-of-text only once, at the very end
    "{% for m in messages %}{{ loop.index }}) {{ m['content'] | upper if m['role'] == 'user' else m['content'] }}"
    "{{ ' ;; ' if not loop.last else eos_token }}{% endfor %}"
)
DROPS_REPLIES = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"

MARKS = ["<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(320, ["Hello there, good day to you. Two words? Be brief. [INST] hi [/INST]"]),
        pad_token="<|pad|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", *MARKS],
    )


def _encode(tokenizer: Any, messages: Any, tools: Any = ()) -> tuple[list[int], list[tuple[int, int]]]:
    """(ids, spans of supervised tokens)."""
    tokens = tokenize(tokenizer, [chat_encoder(tokenizer).draft(to_learn(read_turns(messages), tools))])[0]
    assert isinstance(tokens, Tokens)
    return tokens.ids, tokens.spans


def _supervised(tokenizer: Any, template: str, messages: list[dict[str, Any]]) -> list[str]:
    tokenizer.chat_template = template
    ids, spans = _encode(tokenizer, messages)
    return [tokenizer.decode(ids[start:end]) for start, end in spans]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["Hello.<|im_end|>", "  Good day\n<|im_end|>"]),
        (CHATML_UNMARKED, ["Hello.<|im_end|>", "  Good day\n<|im_end|>"]),
        (CHATML_SHORT_MARKS, ["Hello.<|im_end|>", "  Good day\n<|im_end|>"]),
        (LLAMA_3, ["Hello.<|eot|>", "Good day<|eot|>"]),
        (GEMMA, ["Hello.<|eot|>", "Good day<|eot|>"]),
        (MISTRAL, [" Hello.<|endoftext|>", "   Good day\n<|endoftext|>"]),
        (THINKING, ["Hello.<|im_end|>", "<think>\n\n</think>\n\n  Good day\n<|im_end|>"]),
        (WEIRD, ["Hello.", "  Good day\n<|endoftext|>"]),
    ],
    ids=["chatml", "chatml unmarked", "chatml short marks", "llama 3", "gemma", "mistral", "thinking", "weird"],
)
def test_learns_replies_and_their_ends(tokenizer: Any, template: str, expected: list[str]) -> None:
    assert _supervised(tokenizer, template, TALK) == expected


def test_tokens_are_those_of_the_whole_text(tokenizer: Any) -> None:
    """The model meets at inference what it was trained on: one tokenisation, one beginning mark."""
    tokenizer.chat_template = LLAMA_3
    ids, _ = _encode(tokenizer, TALK)
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|begin|>")) == 1


def test_marked_and_unmarked_templates_agree(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    marked = _encode(tokenizer, TALK)
    tokenizer.chat_template = CHATML_UNMARKED
    assert _encode(tokenizer, TALK) == marked


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=12), st.text(min_size=1, max_size=12).filter(str.strip)), min_size=1, max_size=3
    )
)
def test_any_words_agree_too(turns: list[tuple[str, str]]) -> None:
    tokenizer = _cached_tokenizer()
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    found = []
    for template in (CHATML, CHATML_UNMARKED):
        tokenizer.chat_template = template
        found.append(_encode(tokenizer, messages))
    ids, spans = found[0]
    assert found[1] == found[0]
    assert len(spans) == len(turns)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for (start, stop), (_, reply) in zip(spans, turns, strict=True):
        assert ids[stop - 1] == end
        assert tokenizer.decode(ids[start : stop - 1]) == reply


def _cached_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    if not _CACHE:
        _CACHE.append(
            PreTrainedTokenizerFast(
                tokenizer_object=train_bpe(300, ["some words to begin with"]),
                eos_token="<|endoftext|>",
                additional_special_tokens=["<|im_start|>", "<|im_end|>"],
            )
        )
    return _CACHE[0]


_CACHE: list[Any] = []


def test_a_system_prompt_moves_where_the_template_has_no_place_for_it(tokenizer: Any) -> None:
    tokenizer.chat_template = GEMMA
    ids, _ = _encode(tokenizer, TALK)
    assert "<|head|>user\nBe brief.\n\nHi there<|eot|>" in tokenizer.decode(ids)


def test_a_refused_conversation_is_a_bad_row(tokenizer: Any) -> None:
    tokenizer.chat_template = GEMMA
    with pytest.raises(BadRow, match="Roles must alternate"):
        _encode(tokenizer, [{"role": "assistant", "content": "I begin."}])


def test_a_template_without_replies_is_reported(tokenizer: Any) -> None:
    tokenizer.chat_template = DROPS_REPLIES
    with pytest.raises(UserError, match="cannot be masked") as caught:
        _encode(tokenizer, TALK)
    assert "{% generation %}" in caught.value.remedy


def test_generation_stops_at_the_end_of_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = LLAMA_3
    assert chat_encoder(tokenizer).end_of_turn(tokenizer) == [tokenizer.convert_tokens_to_ids("<|eot|>")]


def test_without_a_template_the_plain_layout_is_saved_with_the_tokenizer(tokenizer: Any, tmp_path: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer.chat_template = None
    assert ensure_template(tokenizer, plain=False) is False
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids, spans = _encode(loaded, TALK)
    assert loaded.decode(ids) == (
        "Be brief.\n\n### Instruction:\nHi there\n\n### Response:\nHello.<|endoftext|>\n\n"
        "### Instruction:\nTwo words?\n\n### Response:\n  Good day\n<|endoftext|>"
    )
    assert [loaded.decode(ids[start:end]) for start, end in spans] == [
        "Hello.<|endoftext|>",
        "  Good day\n<|endoftext|>",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], [("user", "a"), ("assistant", "b")]),
        (
            '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
            [("user", "a"), ("assistant", "b")],
        ),
        (
            [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}, {"role": "user", "content": "c"}],
            [("assistant", "a")],
        ),
    ],
)
def test_conversations_are_normalised(value: Any, expected: list[tuple[str, str]]) -> None:
    assert [(message["role"], message["content"]) for message in to_learn(read_turns(value)).messages] == expected


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([{"role": "user", "content": "a"}], "no assistant turn"),
        ([{"role": "robot", "content": "a"}], "'robot'"),
        ([{"role": "assistant", "content": None}], "no content"),
        ("not json", "neither a list nor JSON"),
        ([], "no assistant turn"),
        (7, "not int"),
    ],
)
def test_what_is_no_conversation_is_a_bad_row(value: Any, why: str) -> None:
    with pytest.raises(BadRow, match=why):
        to_learn(read_turns(value))


def test_token_spans() -> None:
    assert token_spans([(0, 2), (2, 5), (5, 6)], [(3, 6)]) == [(1, 3)]
    assert token_spans([(0, 0), (0, 2), (2, 4), (4, 6), (6, 8)], [(2, 4), (6, 8)]) == [(2, 3), (4, 5)]


def test_half_of_a_surrogate_pair_in_json_text_is_a_bad_row() -> None:
    whole = r'[{"role": "user", "content": "x \ud83d\ude00"}, {"role": "assistant", "content": "y"}]'
    assert read_turns(whole).messages[0]["content"] == "x \U0001f600"
    with pytest.raises(BadRow, match="messages contains half of a surrogate pair"):
        read_turns(whole.replace(r"\ude00", ""))
