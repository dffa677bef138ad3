"""Rows that say which reply is better: a prompt with a chosen and a rejected reply, however they are written.

{"prompt": "Hi", "chosen": "Good day.", "rejected": "What?"}
{"messages": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Good day."}, "rejected": {...}}
{"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}      the prompt is in both
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.bad_rows import BadRow, BadValue
from finetune.data.table import Row, Table
from finetune.tasks.text.conversations import (
    Conversation,
    Message,
    Turns,
    holds_messages,
    is_empty,
    messages_texts,
    read_turns,
    text_turns,
)
from finetune.tasks.text.limits import limit_name
from finetune.tasks.text.row_values import check_text_only, read_history, row_tools, with_system
from finetune.tasks.text.tool_calls import Tool

COLUMNS = {
    "prompt": "The prompt: text, or a list of role and content.",
    "input": "Input of the prompt, put behind it, as in Alpaca; may be empty.",
    "messages": "The conversation before the reply: a list of role and content (or from and value).",
    "chosen": "The preferred reply: text, a message, or the whole conversation.",
    "rejected": "The other reply, in the same format.",
    "system": "System prompt of this row.",
    "history": "Earlier turns: a list of [question, answer].",
    "tools": "Schemas of the tools that the conversation may call: a list, or JSON text of one.",
}
_DIALOG = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):[ \t]?")
PROMPTS = ("prompt", "messages", "chosen")


@dataclass(frozen=True)
class Reply:
    """A conversation up to a reply, the reply, and what else the template gets."""

    before: Sequence[Message]
    message: Message
    tools: Sequence[Tool] = ()
    notices: tuple[str, ...] = ()

    @property
    def conversation(self) -> Conversation:
        """The whole, of which the reply alone is learned."""
        return Conversation([*self.before, self.message], frozenset({len(self.before)}), self.tools, self.notices)

    @property
    def texts(self) -> list[str]:
        """[what comes before, the reply], for models that read a pair of texts."""
        return ["\n\n".join(map(message_text, self.before)), message_text(self.message)]


def read_pair(row: Row, system: str = "", tools: Sequence[Tool] = ()) -> tuple[Reply, Reply]:
    """(chosen, rejected), with the same conversation before them. Raises: BadRow."""
    chosen, rejected = (read_reply(row, role, system, tools) for role in ("chosen", "rejected"))
    if list(chosen.before) != list(rejected.before):
        raise BadRow("chosen and rejected answer different prompts")
    if chosen.message == rejected.message:
        raise BadRow("chosen and rejected are the same")
    return chosen, rejected


def read_reply(row: Row, role: str, system: str = "", tools: Sequence[Tool] = ()) -> Reply:
    """The reply under `role`, with what comes before it. Raises: BadRow."""
    value = row.get(role)
    if value is None:
        have = [name for name in row if row[name] is not None]
        raise BadValue(f"no {{}}; the row has {', '.join(['{}'] * len(have)) or 'nothing'}", role, *have)
    check_text_only(row)
    turns = _reply_turns(value, role)
    if not turns.messages or turns.messages[-1]["role"] != "assistant":
        raise BadValue("{} does not end with a reply of the assistant", role)
    if is_empty(turns.messages[-1]):
        raise BadValue("{} is empty", role, kind="empty")
    reply, before = turns.messages[-1], turns
    del turns.messages[-1], turns.marks[-1]
    has_prompt = any(row.get(name) is not None for name in ("prompt", "messages", "input"))
    if not before.messages:
        before = _prompt(row)
    elif before.messages[0]["role"] not in ("user", "system") and has_prompt:  # the assistant's turns go on from it
        prompt = _prompt(row)
        prompt.extend(before)
        before = prompt
    elif has_prompt and not _holds_prompt(before, row):
        before.notices.append(f"the prompt is not used: {role} holds a whole conversation without it")
    notices: list[str] = []
    schemas = row_tools(row, tools, notices, strict=False) or _inner_tools(row)
    with_system(row, system, before)
    return Reply(before.messages, reply, schemas, (*before.notices, *notices))


def read_prompt(row: Row, system: str = "", tools: Sequence[Tool] = ()) -> Conversation:
    """The conversation to reply to, without any reply. Raises: BadRow."""
    turns, notices = _prompt(row), list[str]()
    schemas = row_tools(row, tools, notices, strict=False) or _inner_tools(row)
    with_system(row, system, turns)
    return Conversation(turns.messages, tools=schemas, notices=(*turns.notices, *notices))


def roles_read(row: Row, replies: Sequence[str] = ("chosen", "rejected")) -> list[str]:
    """The roles that a row is made of: a row that has a prompt is not read under messages. replies: those of the loss."""
    asked = next((role for role in ("prompt", "messages", "input") if row.get(role) is not None), "prompt")
    return [asked, *(["input"] if asked == "prompt" else []), "history", "system", "tools", "functions", *replies]


def equal_after_cut(
    chosen: Sequence[int], rejected: Sequence[int], whole: Sequence[Sequence[int]], limit: int
) -> list[str]:
    """A notice if two replies, cut to `limit` tokens, are the same: there is nothing to prefer, and the pair is left out.

    whole: the tokens of both before the cut. Raises: BadRow if they were the same already.
    """
    if not chosen or list(chosen) != list(rejected):
        return []
    if list(whole[0]) == list(whole[1]):
        raise BadRow("chosen and rejected are the same as the chat template writes them")
    return [f"chosen and rejected are equal within {limit_name(limit)} {limit}: the pair is left out"]


def prompt_notice(limit: int) -> str:
    """The notice of a row without a token of a reply within `limit`."""
    return f"the prompt alone fills {limit_name(limit)} {limit}: the row is left out"


def json_text(value: Any, role: str) -> str:
    """A reply of any JSON type as text: numbers, booleans, lists and mappings as JSON writes them. Raises: BadRow."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise BadValue(f"{{}} is {value}, not text", role)
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise BadValue(f"{{}} is {type(value).__name__}, not text", role) from error


def message_text(message: Message) -> str:
    """All that a message says, as text."""
    return "\n".join(text for text in messages_texts([message]) if text)


def pair_texts(table: Table, replies: tuple[str, ...] = ("chosen", "rejected")) -> Iterator[str]:
    """Texts, bare, for a tokenizer that is trained on them; nothing of a row that cannot be used."""
    for row in table:
        for position, role in enumerate(replies):
            try:
                reply = read_reply(row, role)
            except (BadRow, KeyError, IndexError):
                continue
            yield from messages_texts([] if position else reply.before)
            yield from messages_texts([reply.message])


def _reply_turns(value: Any, role: str) -> Turns:
    """The turns under the role of a reply: messages, a dialog written as text, or one reply."""
    if _is_talk(value):
        return read_turns(value, role)
    text = json_text(value, role)
    return read_dialog(text) or text_turns("assistant", text)


def read_dialog(text: str) -> Turns | None:
    r"""The turns of a dialog written as text, as in HH-RLHF: "\n\nHuman: Hi\n\nAssistant: Yes?"; None for other texts."""
    if not _DIALOG.match(text):
        return None
    _, *parts = _DIALOG.split(text)
    turns = Turns()
    for speaker, words in zip(parts[::2], parts[1::2], strict=True):
        turns.extend(text_turns("user" if speaker == "Human" else "assistant", words.strip()))
    turns.notices.append("a dialog written as text (Human:, Assistant:) is read as turns")
    return turns


def _is_talk(value: Any) -> bool:
    """Whether a value is messages; a list of mappings is meant to be, so that what is wrong with it is reported."""
    return holds_messages(value) or (
        isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value)
    )


def _prompt(row: Row) -> Turns:
    """What is to be replied to: prompt (with its input) or messages, behind the history; OpenAI's input alone."""
    value, given = row.get("prompt"), row.get("input")
    if value is None:
        value = row["messages"] if row.get("messages") is not None else given
        given = None
    if value is None:
        raise BadRow("no prompt")
    if isinstance(value, Mapping) and "messages" in value:  # OpenAI: {"messages": [...], "tools": [...]}
        value = value["messages"]
    if _is_talk(value):
        turns = read_turns(value, "prompt")
    else:
        text = json_text(value, "prompt")
        given = "" if given is None else json_text(given, "input")
        turns = _asked_turns(text, given)
    if not turns.messages or is_empty(turns.messages[-1]):
        raise BadRow("the prompt is empty", kind="empty")
    if turns.messages[-1]["role"] == "assistant":
        raise BadRow("the prompt ends with a reply of the assistant: there is nothing to reply to")
    earlier = read_history(row)
    earlier.extend(turns)
    return earlier


def _asked_turns(text: str, given: str) -> Turns:
    """The turns of a prompt: of a dialog written as text, without the empty reply at its end, or one turn."""
    dialog = None if given.strip() else read_dialog(text)
    if dialog is None:
        return text_turns("user", f"{text}\n\n{given}" if given.strip() else text)
    if len(dialog.messages) > 1 and is_empty(dialog.messages[-1]):
        del dialog.messages[-1], dialog.marks[-1]
    return dialog


def _inner_tools(row: Row) -> Sequence[Tool]:
    """Tool schemas inside the prompt, as OpenAI writes preference data."""
    value = row.get("prompt") if row.get("prompt") is not None else row.get("input")
    return row_tools(value, (), [], strict=True) if isinstance(value, Mapping) else ()


def _holds_prompt(before: Turns, row: Row) -> bool:
    """Whether the words of the row's prompt are in the conversation."""
    try:
        asked = _prompt(row).messages[-1]["content"].strip()
    except BadRow:
        return True  # such as an empty prompt
    return any(asked in message["content"] for message in before.messages)
