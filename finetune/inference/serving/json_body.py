"""Reads a JSON body strictly: what is wrong with it is a sentence, and no key is lost without a word."""

from __future__ import annotations

import json
import re
from typing import Any

from finetune.inference.serving.faults import RequestFault, malformed

DEEPEST = 64  # objects and lists inside each other
MOST_VALUES = 1_000_000  # of one body

_OPENERS = (b"[", b"{", b",")  # each of them begins at most one value, or an object's key with its value
_STRING_OR_OPENER = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{,]', re.DOTALL)


def parse_json(body: bytes, *, what: str = "the body", most: int = MOST_VALUES) -> Any:
    """The value of a JSON text in UTF-8.

    Raises: RequestFault (400) for text that is not JSON, for a key that is there twice, for NaN and Infinity, and for
    values that are nested too deep; 413 for more than `most` values, before any of them is made: millions of empty lists
    are few bytes, and much memory.
    """
    if count_values(body, most) > most:
        raise too_many_values(what, most)
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise malformed(f"{what} is not UTF-8: byte {error.start} cannot be decoded") from None
    if not text.strip():
        raise malformed(f"{what} is empty, not JSON")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise malformed(f"{what} is nested too deep") from None
    except json.JSONDecodeError as error:
        raise malformed(f"{what} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise malformed(f"{what} is not JSON: {error}") from None
    if _is_deep(value):
        raise malformed(f"{what} is nested too deep: at most {DEEPEST} objects and lists inside each other")
    return value


def too_many_values(what: str, most: int) -> RequestFault:
    """413."""
    message = f"{what} has more than {most:,} values: numbers, texts, lists and objects"
    return RequestFault(413, "too_many_values", message)


def count_values(body: bytes, most: int) -> int:
    """The number of values in a JSON text, or a bound of it that is not more than `most`; counting ends once there are more.

    The characters that begin values are counted first, as if all of them were outside of texts, which is quick.
    """
    bound = 1 + sum(map(body.count, _OPENERS))
    if bound <= most:
        return bound
    count = 1
    for found in _STRING_OR_OPENER.finditer(body):
        count += body[found.start()] != 0x22
        if count > most:
            break
    return count


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise malformed(f"the key {twice[:100]!r} is in one object twice", param=twice[:100])
    return made


def _refuse_constant(name: str) -> Any:
    raise malformed(f"{name} is not JSON; use null, or a finite number")


def _is_deep(value: Any) -> bool:
    """Whether more than DEEPEST objects and lists are inside each other; looked at without recursion."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            item
            for one in level
            if isinstance(one, (dict, list))
            for item in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)
