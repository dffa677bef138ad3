"""How several labels of a row are written: lists of names, vectors of 0 and 1, or text.

["joy", "love"]                      names
[1, 0, 1]                            a vector: classes by position
"['joy', 'love']", "[1 0 1]"         a list, written as text by pandas, json or NumPy
"joy|love", "joy;love", "joy,love"   text with a separator
[], "", null                         no label: none applies
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.units import format_number

SEPARATORS = ("|", ";", ",")
LIST = "[]"  # in place of a separator: the text is a list
BLANK = " "  # between the values of a vector: 1 0 1


@dataclass(frozen=True)
class LabelForm:
    """separator: between the labels of a text; "" for none, "[]" where the text is a list. length: of vectors of 0 and 1;
    0: labels are names. bits: names that stand for 0 and 1 in a vector, where a typed file names the numbers.
    """

    separator: str = "|"
    length: int = 0
    bits: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bits": list(self.bits)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> LabelForm:
        """What `to_dict` gave."""
        return cls(stored["separator"], stored["length"], tuple(stored.get("bits", ())))


NAMES = LabelForm()
TAGS = LabelForm(LIST)  # of the words of a sentence: a list, or a list written as text
_ITEM = re.compile(
    r"""\s*(?:(?P<quote>['"])(?P<text>(?:\\.|(?!(?P=quote)).)*)(?P=quote)|(?P<bare>[^,'"\[\]{}()]+?))\s*(?:,|\Z|(?=['"]))""",
    re.DOTALL,
)
_NUMBERS = re.compile(r"[-+0-9.e]+(?:\s+[-+0-9.e]+)+")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "0.": 0, "1.": 1, "true": 1, "false": 0}


def split_labels(value: Any, form: LabelForm) -> list[Any]:
    """The labels of a multi-label value, or the values of a vector; [] for none. Raises: BadRow for another form."""
    if value is None:
        return []
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if not isinstance(value, str):
        return [value]
    text = value.strip()
    if not text:
        return []
    items = parse_list(text)
    if form.separator == LIST:
        if items is None:
            raise BadRow(f"label {value!r} is not a list, unlike the other labels of this column")
        return items
    if items is not None and form.separator:
        raise BadRow(f"label {value!r} is a list written as text, unlike the other labels of this column")
    if form.separator == BLANK:
        return list(text.split())
    return [part for part in text.split(form.separator) if part.strip()] if form.separator else [text]


def vector_positions(items: list[Any], length: int, names: Sequence[str] = ()) -> list[int]:
    """[1, 0, 1] -> [0, 2]; [] -> []. names: of 0 and 1, if they have any.

    Raises: BadRow for another length, and for values other than 0 and 1.
    """
    if not items:
        return []
    bits = [bit_of(item, names) for item in items]
    if None in bits:
        raise BadRow(f"a label vector must contain only 0 and 1, not {items[bits.index(None)]!r}")
    if len(bits) != length:
        raise BadRow(
            f"the label vector has {format_number(len(bits), 'value')}, but those of the training data have {length}"
        )
    return [position for position, bit in enumerate(bits) if bit]


def bit_of(item: Any, names: Sequence[str]) -> int | None:
    """0 or 1; None for anything else. names: of 0 and 1, if they have any."""
    if item in names:
        return list(names).index(item)
    if isinstance(item, (bool, int, float)):
        return int(item) if item in (0, 1) else None
    return _BITS.get(item.strip().lower()) if isinstance(item, str) else None


def parse_list(text: str) -> list[Any] | None:
    """The items of a list written as text; None if the text is none.

    "['a', 'b']", '["a", "b"]', "[a, b]", "['a' 'b']", "[1 0 1]", "('a', 'b')"; "(a)", "a, b" and "['a' ... 'b']" are none.
    """
    if text[:1] not in _BRACKETS or text[-1:] != _BRACKETS[text[0]]:
        return None
    if text[0] == "[":
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            return parsed if isinstance(parsed, list) else None
    body, quoted = text[1:-1].strip().removesuffix(","), 0
    items: list[Any] = []
    if _NUMBERS.fullmatch(body):
        return list(body.split()) if text[0] == "[" and "..." not in body.split() else None
    position = 0
    while position < len(body):
        match = _ITEM.match(body, position)
        if match is None or match.end() == position:
            return None
        if match["quote"]:
            items.append(_unquoted(match["quote"], match["text"]))
            quoted += 1
        elif "..." in match["bare"].split():  # NumPy leaves out the middle of long arrays
            return None
        else:
            items.append(None if match["bare"] in ("None", "nan", "null") else match["bare"])
        position = match.end()
    return items if text[0] == "[" or quoted == len(items) > 0 else None


def _unquoted(quote: str, text: str) -> str:
    try:
        return str(ast.literal_eval(f"{quote}{text}{quote}"))
    except (SyntaxError, ValueError):
        return text
