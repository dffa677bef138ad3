"""Labels: what a class is called however it is written, and the index that the model has for it.

Two labels are one class if they differ only in how they are written: Unicode form (NFC, NFD), white space around or between
words, the case of true and false, and 1, "1", 1.0, "1.0". Names that differ in anything else, as in case, are kept apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.columns import nearest_name
from finetune.data.label_forms import NAMES, LabelForm, split_labels, vector_positions

INTEGER = re.compile(r"0|-?[1-9][0-9]*")
WHOLE = re.compile(r"(0|-?[1-9][0-9]*)\.0*")  # a whole number, written as a float
BOOLEANS = ("true", "false")


def label_text(value: Any) -> str:
    """A label as text, in Unicode form NFC and without superfluous white space: 1 and 1.0 become "1", true "true".

    Raises: BadRow if the value is not a label.
    """
    if isinstance(value, str):
        text = value if value.isascii() else unicodedata.normalize("NFC", value)
        text = " ".join(text.split())
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int):
        text = str(value)
    elif isinstance(value, float):
        if not value.is_integer():
            raise BadRow(f"label {value} is neither a name nor an integer")
        text = str(int(value))
    elif value is None:
        raise BadRow("no label")
    else:
        raise BadRow(f"a label must be a name or an integer, not {type(value).__name__}")
    if not text:
        raise BadRow("the label is empty")
    return text


def label_key(text: str) -> str:
    """What a label is compared by: "True" -> "true", "1.0" -> "1", any other text of `label_text` as it is."""
    if text[0] in "tTfF" and text.lower() in BOOLEANS:
        return text.lower()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted class names: by value if all are integers ("2" before "10"), else by code point."""
    names = list(names)
    if all(INTEGER.fullmatch(label_key(name)) for name in names):
        return sorted(names, key=lambda name: int(label_key(name)))
    return sorted(names)


class Labels:
    """Maps labels to class indices. names: in the order of their indices. form: how several labels of a row are written."""

    def __init__(self, names: Sequence[str], form: LabelForm = NAMES) -> None:
        self.names, self.form = list(names), form
        self._index: dict[str, int] = {}
        for index, name in enumerate(self.names):
            self._index.setdefault(label_key(label_text(name)), index)
        self._index.update({name: index for index, name in enumerate(self.names)})  # exactly as written comes first

    def __len__(self) -> int:
        return len(self.names)

    def index(self, value: Any) -> int:
        """The index of a label value. Raises: BadRow, with the nearest name, if it is not among the classes."""
        name = label_text(value)
        index = self._index.get(name)
        if index is None:
            index = self._index.get(label_key(name))
        if index is None:
            near = nearest_name(name, self.names)
            hint = f"; did you mean {near!r}?" if near else f"; the {len(self)} classes are {self._listed()}"
            raise BadRow(f"label {name!r} does not occur in the training data{hint}")
        return index

    def indices(self, value: Any) -> list[int]:
        """The indices of a multi-label value, as `form` says it is written, ascending; [] for none.

        Raises: BadRow as `index` does, and for a value of another form.
        """
        items = split_labels(value, self.form)
        if self.form.length:
            return vector_positions(items, self.form.length, self.form.bits)
        return sorted({self.index(item) for item in items})

    def _listed(self) -> str:
        shown = ", ".join(self.names[:10])
        return shown if len(self) <= 10 else f"{shown}, ..."


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Names that people may take for one: they differ in case, compatibility form (ﬁ, fi), invisible characters, zeros."""
    groups: dict[str, list[str]] = {}
    for name in names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        visible = "".join(mark for mark in folded if unicodedata.category(mark) != "Cf" and not mark.isspace())
        groups.setdefault(visible.lstrip("0") if visible.isdecimal() else visible, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def spellings_by_class(spellings: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """{text of a label: count} -> {class name: {text: count}}: the text itself, or where there are several, their key."""
    by_key: dict[str, dict[str, int]] = {}
    for text, count in spellings.items():
        by_key.setdefault(label_key(text), {})[text] = count
    return {next(iter(texts)) if len(texts) == 1 else key: texts for key, texts in by_key.items()}
