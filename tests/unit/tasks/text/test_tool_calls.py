"""Proves that tool calls are learned whole under every kind of template, that schemas, results and arguments reach the text,
and that what a template has no place for is refused or told.

The reference is written by hand: the literal text of the supervised tokens.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.data.bad_rows import BadRow
from finetune.models.chat_layouts import CHATML
from finetune.tasks.text.row_formats import RowEncoder
from finetune.tasks.text.tool_calls import read_calls, read_tools
from tests.unit.tasks.text.encoding import row_encoder, shown
from tests.unit.tasks.text.templates import (
    DEEPSEEK,
    DEEPSEEK_NONE,
    HERMES_MARKED,
    LLAMA_3,
    MISTRAL,
    QWEN,
    QWEN_3,
    make_tokenizer,
)

ARGUMENTS = {"city": "Oslo", "days": 2}
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city", "parameters": {"type": "object"}},
}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": "4 C"},
    {"role": "assistant", "content": "It is 4 C."},
]
QWEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call><|im_end|>'
PLAIN_CALL = QWEN_CALL.replace("<|im_end|>", "<|endoftext|>")
EXPECTED = {
    "qwen": (QWEN, [QWEN_CALL, "It is 4 C.<|im_end|>"]),
    "qwen 3": (QWEN_3, [QWEN_CALL, "<think>\n\n</think>\n\nIt is 4 C.<|im_end|>"]),
    "llama 3": (
        LLAMA_3,
        ['{"name": "weather", "parameters": {"city": "Oslo", "days": 2}}<|eom|>', "It is 4 C.<|eot|>"],
    ),
    "mistral": (
        MISTRAL,
        [
            '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}]<|endoftext|>',
            " It is 4 C.<|endoftext|>",
        ],
    ),
    "deepseek": (
        DEEPSEEK,
        [
            '<call>weather\n```json\n{"city": "Oslo", "days": 2}\n```</call><|endoftext|>',
            "It is 4 C.<|endoftext|>",
        ],
    ),
    "deepseek, none": (
        DEEPSEEK_NONE,
        [
            '<call>weather\n```json\n{"city": "Oslo", "days": 2}\n```</call><|endoftext|>',
            "It is 4 C.<|endoftext|>",
        ],
    ),
    "hermes, marked": (HERMES_MARKED, ["\n" + QWEN_CALL, "\nIt is 4 C.<|im_end|>"]),
    "our chatml": (CHATML, [QWEN_CALL, "It is 4 C.<|im_end|>"]),
    "plain": (None, [PLAIN_CALL, "It is 4 C.<|endoftext|>"]),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_turn_that_only_calls_a_tool_is_learned_whole(name: str) -> None:
    template, expected = EXPECTED[name]
    text, spans, notices = shown(row_encoder(template), {"messages": TALK})
    assert spans == expected
    assert "4 C" in text.replace(expected[1], "")  # the result is there as well
    assert [notice for notice in notices if "generation prompt" not in notice] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_of_one_call_is_enough(name: str) -> None:
    template, expected = EXPECTED[name]
    spans = shown(row_encoder(template), {"messages": TALK[:2]})[1]
    assert [span.replace("<think>\n\n</think>\n\n", "") for span in spans] == expected[:1]


@pytest.mark.parametrize("name", EXPECTED)
def test_schemas_reach_the_template_or_are_reported(name: str) -> None:
    encoder = row_encoder(EXPECTED[name][0])
    for tools in ([TOOL], json.dumps([TOOL]), [TOOL["function"]]):
        for with_targets in (True, False):
            text, _, notices = shown(encoder, {"messages": TALK, "tools": tools}, with_targets=with_targets)
            told = any("no place for tool schemas" in notice for notice in notices)
            assert ("Of a city" in text) != told
            assert told == (name in ("qwen 3", "deepseek", "deepseek, none"))


@pytest.mark.parametrize("name", EXPECTED)
def test_arguments_are_the_same_as_text_and_as_a_mapping(name: str) -> None:
    encoder = row_encoder(EXPECTED[name][0])
    mapped = {**CALL, "function": {"name": "weather", "arguments": ARGUMENTS}}
    old = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "weather", "arguments": json.dumps(ARGUMENTS)},
    }
    forms: list[list[dict[str, Any]]] = [[TALK[0], {"role": "assistant", "tool_calls": [mapped]}, *TALK[2:]]]
    if name != "mistral":  # which wants an identifier
        forms.append([TALK[0], old, {"role": "function", "name": "weather", "content": "4 C"}, TALK[3]])
        share = {"from": "function_call", "value": json.dumps(CALL["function"])}
        forms.append([TALK[0], share, {"from": "observation", "value": "4 C"}, TALK[3]])
    for messages in forms:
        assert shown(encoder, {"messages": messages})[1] == EXPECTED[name][1]


def test_words_beside_a_call_are_learned_or_the_row_is_refused() -> None:
    both = [TALK[0], {**TALK[1], "content": "Let me look."}, *TALK[2:]]
    assert shown(row_encoder(QWEN), {"messages": both})[1][0] == "Let me look.\n" + QWEN_CALL
    with pytest.raises(BadRow, match=r"leaves out the text of message 2 \(assistant\) beside its tool calls"):
        shown(row_encoder(LLAMA_3), {"messages": both})


def test_several_calls_in_a_turn() -> None:
    other = {"id": "a1b2c3d4f", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    talk = [TALK[0], {**TALK[1], "tool_calls": [CALL, other]}, *TALK[2:]]
    spans = shown(row_encoder(QWEN_3), {"messages": talk})[1]
    assert spans[0].count("<tool_call>") == 2 and spans[0].endswith("</tool_call><|im_end|>")
    with pytest.raises(BadRow, match="single tool-calls at once"):
        shown(row_encoder(LLAMA_3), {"messages": talk})
    first_only = LLAMA_3.replace("m.tool_calls | length != 1", "false")
    with pytest.raises(BadRow, match="leaves out the call of weather in message 2"):
        shown(row_encoder(first_only), {"messages": talk})


def test_a_template_without_a_place_for_calls_refuses_the_row() -> None:
    simple = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    with pytest.raises(BadRow, match="message 2 calls a tool, and the chat template has no place for tool calls"):
        shown(row_encoder(simple), {"messages": TALK})


def test_the_schemas_of_the_recipe_are_for_rows_without_their_own() -> None:
    encoder = row_encoder(QWEN, tools=[TOOL])
    assert "Of a city" in shown(encoder, {"messages": TALK})[0]
    assert "Of a city" in shown(encoder, {"instruction": "Weather?", "output": "Fine."})[0]
    assert "Of a city" not in shown(encoder, {"messages": TALK, "tools": []})[0]


def test_a_template_of_its_own_for_tools_is_used() -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = {"default": LLAMA_3, "tool_use": QWEN}
    encoder = RowEncoder(
        tokenizer, form="auto", own_template=True, system="", train_on="reply", limit=1000, on_long="truncate"
    )
    assert shown(encoder, {"messages": TALK, "tools": [TOOL]})[1] == EXPECTED["qwen"][1]
    assert shown(encoder, {"messages": TALK})[1] == EXPECTED["llama 3"][1]


@pytest.mark.parametrize(
    ("calls", "why"),
    [
        ("no json", "text, but not JSON"),
        ([7], "int, not a mapping"),
        ([{"function": {"arguments": {}}}], "without a name"),
        ([{"type": "custom", "custom": {"name": "a"}}], "type 'custom'"),
        ([{"name": "a", "arguments": "[1]"}], "the arguments of a are list"),
        ([{"name": "a", "arguments": "{"}], "the arguments of a are text, but not JSON"),
    ],
)
def test_what_is_no_call_is_a_bad_row(calls: Any, why: str) -> None:
    with pytest.raises(BadRow, match=why):
        read_calls(calls, "message 2")


def test_calls_and_schemas_in_other_forms() -> None:
    assert read_calls({"name": "a", "arguments": ""}, "") == [
        {"type": "function", "function": {"name": "a", "arguments": {}}}
    ]
    assert read_tools([json.dumps(TOOL)], "tools") == [TOOL] and read_tools("", "tools") == []
    for value in ("words", 7, [[]], [{"parameters": {}}]):
        with pytest.raises(BadRow, match="tools"):
            read_tools(value, "tools")
