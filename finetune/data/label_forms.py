"""How several labels of a row are written: lists of names, vectors of 0 and 1, or text; decided once for a whole column.

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
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.errors import UserError
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
    bits = [_bit(item, names) for item in items]
    if None in bits:
        raise BadRow(f"a label vector must contain only 0 and 1, not {items[bits.index(None)]!r}")
    if len(bits) != length:
        raise BadRow(
            f"the label vector has {format_number(len(bits), 'value')}, but those of the training data have {length}"
        )
    return [position for position, bit in enumerate(bits) if bit]


def _bit(item: Any, names: Sequence[str]) -> int | None:
    if item in names:
        return list(names).index(item)
    if isinstance(item, (bool, int, float)):
        return int(item) if item in (0, 1) else None
    return _BITS.get(item.strip().lower()) if isinstance(item, str) else None


def _is_share(item: Any) -> bool:
    return isinstance(item, (int, float)) and not isinstance(item, bool) and 0 <= item <= 1


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


@dataclass
class _Evidence:
    """What speaks for vectors among the lists of a column (or its texts, split at one separator)."""

    names: Sequence[str] = ()  # of 0 and 1, if they have any
    filled: int = 0  # rows with an item
    single: int = 0  # of one value, 0 or 1
    repeated: int = 0  # of 0 and 1 with one of them more than once: no list of names is written so
    lengths: Counter[int] = field(default_factory=Counter)  # of lists of two or more, all 0 or 1

    def add(self, items: list[Any]) -> None:
        if not items:
            return
        self.filled += 1
        bits = [_bit(item, self.names) for item in items]
        if len(items) > 1 and None in bits and all(map(_is_share, items)):  # a vector, and a bad row: no list of names
            self.lengths[len(items)] += 1
            return
        if None in bits or (self.names and len(bits) < 2):
            return
        if len(bits) == 1:
            self.single += 1
        else:
            self.lengths[len(bits)] += 1
            self.repeated += len(set(bits)) < len(bits)

    def length(self) -> int:
        """The length of the vectors, 0 if these are none: more than half are 0 and 1 only and of one length, and one of
        them repeats a value, or all are like it: [0, 1] and [1, 0] as sets of names would be the same for every row.
        """
        if not self.lengths:
            return 0
        length, count = self.lengths.most_common(1)[0]
        return length if 2 * count > self.filled and (self.repeated or count == self.filled) else 0


def decide_form(
    values: Iterable[Any],
    *,
    stated: Collection[str],
    separator: str,
    column: str,
    same: Any = str,
    declared: Sequence[str] = (),
) -> tuple[LabelForm, str]:
    """(how the labels of a column are written, a line that tells it), from all its values.

    stated: the names of the classes, if the recipe gives them: the separator is the one that yields them. separator:
    "from_data", "none", or the separator that the recipe gives. same: text of a label -> what names are compared by.
    declared: names of the classes in a typed file, which has put the first two in place of 0 and 1.
    Raises: UserError if every row is a list of one value, 0 or 1, which may be a vector or a name.
    """
    bits = tuple(declared[:2])
    lists, rows, texts, listed = _Evidence(bits), 0, 0, 0
    split = {mark: _Evidence() for mark in (*SEPARATORS, BLANK)}
    holding: Counter[str] = Counter()
    fitting: Counter[str] = Counter()
    example: dict[str, str] = {}
    names = {same(name) for name in stated}
    for value in values:
        rows += 1
        if not isinstance(value, str):
            items = split_labels(value, NAMES)
            if not isinstance(value, (int, float)):
                lists.add(items)
            continue
        if not (text := value.strip()):
            continue
        parsed = parse_list(text)
        if parsed is not None:
            texts, listed = texts + 1, listed + 1
            lists.add(parsed)
            example.setdefault(LIST, text)
            continue
        texts += 1
        for mark in ("", *SEPARATORS, BLANK):
            parts = [part for part in text.split(mark) if part.strip()] if mark else [text]
            fitting[mark] += bool(names) and all(same(part) in names for part in parts)
            if mark:
                split[mark].add(parts)
            if mark and mark in text:
                holding[mark] += 1
                example.setdefault(mark, text)
    mark = _separator(separator, texts, listed, holding, fitting, split[BLANK])
    evidence = split[mark] if mark in split and texts > listed else lists
    length = evidence.length()
    if {"0", "1"} <= names or (declared and length != len(declared)):
        length = 0
    if evidence.filled and evidence.single == evidence.filled and evidence is lists:
        if not stated:
            raise UserError(
                f"the column {column} holds lists of one value, 0 or 1: vectors of one class, or the classes 0 and 1?",
                remedy="Set options.labels: [NAME] for one class, or [NAME, NAME] for two.",
            )
        length = 1 if len(stated) == 1 and names != {"0"} and names != {"1"} else 0
    form = LabelForm(mark if mark != BLANK or length else "", length, bits if length else ())
    return form, f"{column}: {_told(form, holding[mark], texts, example.get(mark, ''))}"


def _separator(
    asked: str, texts: int, listed: int, holding: Counter[str], fitting: Counter[str], blank: _Evidence
) -> str:
    if asked != "from_data":
        return "" if asked == "none" else asked
    if 2 * listed > texts:
        return LIST
    best = max(("", *SEPARATORS), key=lambda mark: fitting[mark])  # the first of equals
    if not fitting[best]:
        best = next((mark for mark in SEPARATORS if holding[mark]), "")
    if not best and blank.length() and blank.lengths.total() == blank.filled:
        return BLANK
    return best or ("" if holding["|"] else "|")  # texts without any mark: the default for those of other splits


def _told(form: LabelForm, holding: int, texts: int, example: str) -> str:
    example = example if len(example) <= 60 else example[:57] + "..."
    if form.length:
        written = f", written as text such as {example!r}" if example else ""
        return f"vectors of {format_number(form.length, 'value')}, 0 or 1{written}: classes by position"
    if form.separator == LIST:
        return f"lists of labels, written as text such as {example!r}"
    if form.separator and holding:
        return (
            f"{holding:,} of {texts:,} texts hold several labels, split at {form.separator!r}, such as {example!r} "
            "(options.label_separator: none reads each text as one label)"
        )
    return "each text is one label" if texts else "lists of labels"
