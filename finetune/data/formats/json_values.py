"""JSON objects as rows: what would lose a value, or end the program, makes the row bad."""

from __future__ import annotations

import json
from typing import Any

from finetune.data.bad_rows import BadRow

MAX_DEPTH = 200  # of nested lists and objects; Python's own limit depends on the caller


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of its members. Raises: BadRow for a key that occurs twice, as all values but the last would be lost."""
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow(f"the key {twice!r} occurs twice in an object")
    return members


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def parse_object(text: str) -> dict[str, Any]:
    """Parse one JSON object. Raises: BadRow with the error and its column."""
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not JSON: {json_error(error)}") from error
    flat = text.find("[") < 0 and text.find("{", 1) < 0  # much faster than counting
    row = as_row(value, 0 if flat else text.count("[") + text.count("{"))
    if isinstance(row, BadRow):
        raise row
    return row


def json_error(error: Exception) -> str:
    """What is wrong, from the exception of the json module."""
    if isinstance(error, json.JSONDecodeError):
        if error.msg == "Extra data":
            return f"more than one value on the line, from column {error.colno}"
        is_cut = error.msg.startswith("Unterminated string") or not error.doc[error.pos :].strip()
        message = "the line ends too early" if is_cut else error.msg.removesuffix(" at")
        return f"{message} at column {len(error.doc.rstrip()) + 1 if is_cut else error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "an integer of more than 4,300 digits"


def as_row(value: Any, brackets: int) -> dict[str, Any] | BadRow:
    """A parsed value as a row; a BadRow for what is no object, and for one that is nested too deeply to be written again.

    brackets: the number of opening brackets in its text, an upper bound of its depth.
    """
    if not isinstance(value, dict):
        turns = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
        rather = '; if it is a conversation, write {"messages": [...]}' if turns else ""
        return BadRow(f"not a JSON object, but {json_kind(value)}{rather}")
    if brackets > MAX_DEPTH and _is_deep(value):
        return BadRow("nested too deeply")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = (item for item in level if isinstance(item, (dict, list)))
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return False
    return True


def json_kind(value: Any) -> str:
    """The JSON name of a Python value's type, with an article: "a list", "null"."""
    names = {"list": "a list", "str": "a string", "NoneType": "null", "bool": "true or false"}
    return names.get(type(value).__name__, "a number")
