"""Conversations as rows hold them, normalized: who speaks, what, which turns are learned, which tools there are.

[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?", "weight": 0}]
-> messages [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}], marks [None, False]
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.values import check_text
from finetune.tasks.text.tool_calls import Tool, calls_text, read_calls

Message = dict[str, Any]

ROLES = {
    **dict.fromkeys(("user", "human", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "answer"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "ipython", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),  # its content is the call
}
_ROW_ROLES = {*ROLES, "prompter"}  # also those of files with one turn per row, such as OpenAssistant's
_PLAIN_ROLES = ("user", "assistant", "system", "tool")
_CALL_ROLES = ("function_call", "tool_call")
LEARN_KEYS = ("weight", "train", "training", "loss")  # false or 0: the turn is context only
MASK_KEYS = ("mask", "masked")  # true or 1: the same
DETAIL_KEYS = ("train_detail", "training_detail")  # of parts of a turn
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # of a key: lossMask is loss and Mask
# Words of keys that may mean the same in other tools, also joined (lossmask); not those of constraint, glossary or learner.
_LIKE_A_MARK = re.compile(r"(is|do|no|non|un|not)?((train|learn|loss|mask|weight)(s|ed|ing|able)?)+", re.IGNORECASE)
_NO_MARK = {"id", "index", "step", "epoch", "split"}  # words of keys that tell where a turn comes from: training_id
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
_READ = {"role", "from", "content", "value", "tool_calls", "function_call", *LEARN_KEYS, *MASK_KEYS}
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA = {
    name: kind
    for kind, names in {
        "an image": ("image", "image_url", "input_image"),
        "audio": ("audio", "audio_url", "input_audio"),
        "a video": ("video", "video_url", "input_video"),
        "a file": ("file", "input_file", "document"),
    }.items()
    for name in names
}


@dataclass
class Turns:
    """messages: role and content, and what else a template may use. marks: for each, whether the row says that it is
    to be learned (True, False; None: it does not say). notices: what was left out.
    """

    messages: list[Message] = field(default_factory=list)
    marks: list[bool | None] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def extend(self, other: Turns) -> None:
        """Add turns that follow."""
        self.messages += other.messages
        self.marks += other.marks
        self.notices += other.notices


@dataclass(frozen=True)
class Conversation:
    """What a template renders. learned: positions of the assistant's turns to learn. tools: schemas."""

    messages: Sequence[Message]
    learned: frozenset[int] = frozenset()
    tools: Sequence[Tool] = ()
    notices: tuple[str, ...] = ()


def read_turns(value: Any, name: str = "messages") -> Turns:
    """A list of messages, JSON text of one, a single message, or a mapping of lists, as `datasets` stores a sequence of
    messages: {"role": ["user", "assistant"], "content": ["Hi", "Yes?"]}. name: what a BadRow calls it. Raises: BadRow.
    """
    if isinstance(value, str):
        value = _read_text(value, name)
        check_text(value, name)  # JSON inside of a text was not looked through when the file was read
    if isinstance(value, Mapping):
        value = _listed(value)
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"{name} are a list of role and content, not {type(value).__name__}")
    turns = Turns()
    for index, message in enumerate(value):
        read, mark = _read_message(message, f"message {index + 1}", turns.notices)
        turns.messages.append(read)
        turns.marks.append(mark)
    return turns


def _listed(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """[a message], or the messages of a mapping whose values are lists of one length."""
    columns = {key: item for key, item in value.items() if item is not None}
    lists = [item for item in columns.values() if isinstance(item, (list, tuple))]
    speakers = columns.get("role", columns.get("from"))
    if not isinstance(speakers, (list, tuple)) or len(lists) < len(columns) or len({len(item) for item in lists}) > 1:
        return [value]
    return [dict(zip(columns, items, strict=True)) for items in zip(*lists, strict=True)]


def _read_text(text: str, name: str) -> Any:
    """The list that a text holds: JSON, or Python's notation, as pandas writes lists into a csv. Raises: BadRow."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                return ast.literal_eval(text.strip())
        raise BadRow(f"{name} are neither a list nor JSON: {error}") from error


def is_role(name: str) -> bool:
    """Whether a word names a speaker."""
    return name.strip().lower() in _ROW_ROLES


def holds_messages(value: Any) -> bool:
    """Whether a value is a message or a list of them (or JSON text of that), not text."""
    if isinstance(value, str):
        if not value.lstrip().startswith(("[{", "[ {", "[\n")):
            return False
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    if isinstance(value, Mapping):
        value = _listed(value)
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value)
    )


def text_turns(role: str, text: str) -> Turns:
    """One turn of plain text."""
    return Turns([{"role": role, "content": text}], [None])


def is_empty(message: Message) -> bool:
    """Whether a message says nothing: no words, no calls, no thought."""
    return not (message["content"].strip() or message.get("tool_calls") or message.get("reasoning_content"))


def messages_texts(messages: Sequence[Message]) -> Iterator[str]:
    """The words of messages, with their thoughts and calls."""
    for message in messages:
        yield message["content"]
        if message.get("reasoning_content"):
            yield message["reasoning_content"]
        if message.get("tool_calls"):
            yield calls_text(message["tool_calls"])


def _read_message(message: Any, where: str, notices: list[str]) -> tuple[Message, bool | None]:
    if not isinstance(message, Mapping):
        raise BadRow(f"{where} is {type(message).__name__}, not a mapping of role and content")
    if len(message) == 2 and type(message.get("content")) is str and message.get("role") in _PLAIN_ROLES:
        return dict(message), None
    given = message.get("role") if message.get("role") is not None else message.get("from")
    if given is None:
        raise BadRow(f"{where} has no role (role or from); it has {', '.join(map(str, message)) or 'nothing'}")
    known = str(given).strip().lower()
    if known not in ROLES:
        raise BadRow(f"{where} has the role {given!r}; known: {', '.join(ROLES)}")
    role = ROLES[known]
    if ROLES.get(str(message.get("from", given)).strip().lower(), role) != role:
        raise BadRow(f"{where} has the role {given!r}, but is from {message['from']!r}")
    value = _said_in(message, where)
    extra: Message = {key: item for key, item in message.items() if key not in _READ and item is not None}
    calls = read_calls(value, where) if known in _CALL_ROLES else []
    content = "" if known in _CALL_ROLES else _read_content(value, where, role, extra)
    for key in ("tool_calls", "function_call"):
        if message.get(key) is not None:
            calls += read_calls(message[key], where)
    if calls and role != "assistant":
        raise BadRow(f"{where} calls a tool, but its role is {given}")
    if role == "assistant":
        _read_thought(extra, where)
    if content is None:
        if not calls and not extra.get("reasoning_content"):
            raise BadRow(f"{where} has no content; it has {', '.join(map(str, message))}")
        content = ""
    read = {"role": role, "content": content, **extra, **({"tool_calls": calls} if calls else {})}
    return read, _read_mark(message, where, role, notices)


def _said_in(message: Mapping[str, Any], where: str) -> Any:
    """The content of a message, or its value, which is another name for it; empty text under one of them says nothing.

    Raises: BadRow if both say something, and not the same.
    """
    content, value = message.get("content"), message.get("value")
    if content is None or value is None or content == value:
        return value if content is None else content
    if "" in (content, value):
        return value if content == "" else content
    raise BadRow(f"{where} has both content and value, and they differ")


def _read_content(value: Any, where: str, role: str, extra: Message) -> str | None:
    """The text of a message, None if it has none. Thoughts among its parts go to `extra`."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and not (role == "tool" and not _are_parts(value)):
        parts = [_read_part(part, where, extra) for part in value]
        return "".join(parts)
    if role == "tool":  # the result of a function may be any JSON value
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise BadRow(f"{where} has content that is {type(value).__name__}, not text")


def _are_parts(value: Sequence[Any]) -> bool:
    return all(isinstance(part, str) or (isinstance(part, Mapping) and "type" in part) for part in value)


def _read_part(part: Any, where: str, extra: Message) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise BadRow(f"{where} has a part that is {type(part).__name__}, not text")
    kind = part.get("type") or next((name for name in _MEDIA if part.get(name) is not None), "text")
    if kind in _MEDIA:
        raise BadRow(f"{where} contains {_MEDIA[kind]}, but this task reads only text")
    thought = part.get(kind, part.get("text")) if kind in ("thinking", "reasoning") else None
    if isinstance(thought, str):
        extra["reasoning_content"] = extra.get("reasoning_content", "") + thought
        return ""
    if kind not in _TEXT_PARTS:
        raise BadRow(f"{where} contains a part of type {kind!r}, which is not known: this task reads only text")
    if not isinstance(part.get("text"), str):
        raise BadRow(f"{where} contains a part of type {kind!r} without text")
    return part["text"]


def _read_thought(extra: Message, where: str) -> None:
    """A thought under any of its names goes by the one that templates read."""
    thoughts = {key: extra.pop(key) for key in THOUGHT_KEYS if extra.get(key) not in (None, "")}
    for key, thought in thoughts.items():
        if not isinstance(thought, str):
            raise BadRow(f"{where} has {key} that is {type(thought).__name__}, not text")
    if len(set(thoughts.values())) > 1:
        raise BadRow(f"{where} has different reasoning in {' and '.join(thoughts)}")
    if thoughts:
        extra["reasoning_content"] = next(iter(thoughts.values()))


def _read_mark(message: Mapping[str, Any], where: str, role: str, notices: list[str]) -> bool | None:
    """Whether the row says that a message is to be learned."""
    for key, value in message.items():
        if key in DETAIL_KEYS and value:
            raise BadRow(f"{where} has {key}: learning parts of a turn is not supported")
        is_mark = key not in _READ and isinstance(value, (bool, int, float)) and 0 <= value <= 1
        words = _WORD.findall(str(key)) if is_mark else []
        if any(map(_LIKE_A_MARK.fullmatch, words)) and _NO_MARK.isdisjoint(word.lower() for word in words):
            raise BadRow(
                f"{where} has {key}: {value!r}, which is not known; a turn is not learned with {', '.join(LEARN_KEYS)}: "
                f"false, or {' or '.join(MASK_KEYS)}: true"
            )
    marks = {}
    for key in (*LEARN_KEYS, *MASK_KEYS):
        value = message.get(key)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise BadRow(f"{where} has {key}: {value!r}; known: 0, 1, true, false")
        marks[key] = bool(value) != (key in MASK_KEYS)
    if len(set(marks.values())) > 1:
        raise BadRow(f"{where} is marked both as learned and as not learned: {', '.join(marks)}")
    mark = next(iter(marks.values()), None)
    if mark and role != "assistant":
        notices.append(f"turns of the {role} are marked to be learned ({', '.join(marks)}), and only replies are")
    return mark if role == "assistant" else None
