"""Inputs near valid ones: bytes cut, doubled, exchanged; JSON values replaced by odd ones. For hypothesis."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD_BYTES = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\x1b[31m",
        b"\xed\xa0\x80",
        b'"',
        b"\n\n",
        b"\r",
        b"{" * 40,
        b"[" * 40,
        b",,,,",
        b"\xef\xbb\xbf",
    ),
    *(
        b"NaN",
        b"1e999",
        b"-0",
        b"null",
        b"\\u0000",
        b"\\ud800",
        b"9" * 60,
        b"../../x",
        b"!!python/object:os.system",
        b"&a *a",
    ),
)

odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["", "../../etc/passwd", "/", "\x1b[31m", "\ud800", "a" * 300, "env:HOME", "nan", "1e400", "~", "-1"]
    ),
    st.lists(st.integers(-2, 2), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(-2, 2), max_size=2),
    st.just([[[[[[]]]]]]),
)


@st.composite
def mutated_bytes(draw: st.DrawFn, original: bytes, changes: int = 4) -> bytes:
    """`original` after a few cuts, insertions, repetitions and flipped bits."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, changes))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 8))
        match draw(st.sampled_from(["cut", "insert", "odd", "repeat", "flip", "end"])):
            case "cut":
                del content[at : at + length]
            case "insert":
                content[at:at] = draw(st.binary(max_size=6))
            case "odd":
                content[at : at + length] = draw(st.sampled_from(ODD_BYTES))
            case "repeat":
                content[at:at] = content[at : at + 20 * length]
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "end":
                del content[at:]
    return bytes(content)


@st.composite
def mutated_tree(draw: st.DrawFn, original: Any, changes: int = 3) -> Any:
    """`original` (of dicts and lists) with a few values replaced, keys removed or added."""
    tree = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, changes))):
        inner = tree
        while True:
            keys: list[Any] = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inner[key], (dict, list)) and inner[key] and draw(st.integers(0, 3)):
                inner = inner[key]
                continue
            match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
                case "replace":
                    inner[key] = copy.deepcopy(draw(odd_values))
                case "remove":
                    del inner[key]
                case "add" if isinstance(inner, dict):
                    inner[draw(st.text(max_size=8))] = copy.deepcopy(draw(odd_values))
            break
    return tree
