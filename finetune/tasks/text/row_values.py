"""Single values of a row that belongs to a conversation: texts, system prompt, tool schemas, earlier turns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.bad_rows import BadRow, BadValue
from finetune.data.table import Row
from finetune.tasks.text.conversations import Turns, is_role, read_turns, text_turns
from finetune.tasks.text.tool_calls import Tool, parse_json, read_calls, read_tools

TOOL_ROLES = ("tools", "functions")
MEDIA_COLUMNS = {
    name: kind
    for kind, names in {
        "an image": ("image", "images"),
        "a video": ("video", "videos"),
        "audio": ("audio", "audios"),
    }.items()
    for name in names
}
_TURN_COLUMNS = ("role", "from")  # of files with one turn per row


def row_string(row: Row, role: str) -> str:
    """The text of a role; numbers become text. Raises: BadRow."""
    value = row.get(role)
    if value is None:
        raise BadValue("no {}", role)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadValue(f"{{}} is {type(value).__name__}, not text", role)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadValue(f"{{}} is {value}, not text", role)
    return str(value)


def check_text_only(row: Row) -> None:
    """Check that a row's prompt or conversation has no pictures or sounds beside it, as LLaVA and TRL write them.

    Raises: BadRow.
    """
    for column, kind in MEDIA_COLUMNS.items():
        value = row.get(column)
        if value is not None and not (isinstance(value, (str, list, tuple, Mapping)) and len(value) == 0):
            raise BadValue(f"{{}} contains {kind}, but this task reads only text", column)


def reply_calls(row: Row, role: str, tools: Sequence[Tool]) -> Turns | None:
    """The reply of a row as tool calls, if it is a list of calls (or JSON text of one) of the row's tools, as in xLAM.

    None for any other reply.
    """
    value, names = row.get(role), {tool["function"]["name"] for tool in tools if "function" in tool}
    try:
        if isinstance(value, str) and not value.lstrip().startswith("["):
            return None
        calls = read_calls(value, "the reply") if names and value else []
    except BadRow:
        return None
    if not calls or not all(call["function"]["name"] in names for call in calls):
        return None
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    return Turns([message], [None], ["a reply that is a list of calls of the row's tools is learned as tool calls"])


def turn_notices(row: Row) -> tuple[str, ...]:
    """A notice if a row of plain text is one turn of a conversation, as files with one turn per row have them."""
    for column in _TURN_COLUMNS:
        if isinstance(value := row.get(column), str) and is_role(value):
            return (f"the row is one turn of a conversation ({column}: {value}), and is learned as plain text",)
    return ()


def row_tools(row: Row, default: Sequence[Tool], notices: list[str], *, strict: bool) -> Sequence[Tool]:
    """The tool schemas of a row, or the default where it names none.

    strict: what is no list of schemas makes the row bad; else, in a row that is no conversation, such a column may mean
    something else, and becomes a notice.
    """
    for role in TOOL_ROLES:
        if row.get(role) is None:
            continue
        try:
            return read_tools(row[role], role)
        except BadRow:
            if strict:
                raise
            notices.append(f"{role} are not tool schemas, and are not used")
    return default


def read_history(row: Row) -> Turns:
    """Earlier turns: [[question, answer], ...], JSON text of it, or messages; none if the row has none. Raises: BadRow."""
    value = row.get("history")
    turns = Turns()
    if value is None or (isinstance(value, str) and not value.strip()):
        return turns
    value = parse_json(value, "history is")
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
        return read_turns(value, "history")
    if not isinstance(value, (list, tuple)) or not all(_is_exchange(item) for item in value):
        raise BadValue("{} is not a list of question and answer", "history")
    for question, answer in value:
        turns.extend(text_turns("user", question))
        turns.extend(text_turns("assistant", answer))
    return turns


def _is_exchange(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(text, str) for text in item)


def with_system(row: Row, default: str, turns: Turns) -> int:
    """Put the system prompt of the row, or the default, before turns that begin without one; the turns added (0, 1).

    A row whose own prompt differs from the one that its turns begin with gets a notice.
    """
    own = row_string(row, "system") if row.get("system") is not None else ""
    first = turns.messages[0] if turns.messages else {"role": ""}
    if first["role"] == "system":
        if own.strip() and own.strip() != first["content"].strip():
            turns.notices.append("the column system is not used: the conversation begins with a system turn of its own")
        return 0
    if not (own or default):
        return 0
    turns.messages = [{"role": "system", "content": own or default}, *turns.messages]
    turns.marks = [None, *turns.marks]
    return 1
