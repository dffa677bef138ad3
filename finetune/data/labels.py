"""Class names: collected from the training data in a deterministic order, and mapped to class indices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.columns import nearest_name
from finetune.data.table import Table
from finetune.errors import UserError

INTEGER = re.compile(r"0|-?[1-9][0-9]*")
MAX_CLASSES = 100_000
SEPARATOR = "|"  # between the labels of a multi-label row that is text


def label_text(value: Any) -> str:
    """The class name of a label value: 1, "1", " 1 " and 1.0 all become "1"; true becomes "true".

    Raises: BadRow if the value is not a label.
    """
    if isinstance(value, str):
        text = value.strip()
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


def label_texts(value: Any) -> list[str]:
    """The class names of a multi-label value, a list or text separated by "|", without duplicates. May be empty."""
    if isinstance(value, str):
        items: Iterable[Any] = [part for part in value.split(SEPARATOR) if part.strip()]
    elif isinstance(value, (list, tuple)):
        items = value
    else:
        items = [value]
    return list(dict.fromkeys(label_text(item) for item in items))


def class_names(tables: Mapping[str, Table], role: str = "label", *, several: bool = False) -> list[str]:
    """The class names of tables["train"]: in the data's own order if it declares them, integers by value, else A to Z.

    several: a row holds a list of labels, or "a|b". Bad labels are ignored here; encoding reports them with their rows.
    Raises: UserError if there are fewer than two classes (with `several`: none), or more than 100,000.
    """
    table = tables["train"]
    declared: Mapping[str, Sequence[str]] = getattr(table, "classes", {})
    if role in declared:
        return list(declared[role])
    names: set[str] = set()
    for value in _values(table, role):
        try:
            names.update(label_texts(value) if several else (label_text(value),))
        except BadRow:
            continue
        if len(names) > MAX_CLASSES:
            raise UserError(
                f"the column {table.columns.get(role, role)} has more than {MAX_CLASSES:,} distinct values",
                where=table.name,
                remedy=f"It is probably not the label: map another column with data.columns: {{{role}: <column>}}.",
            )
    minimum = 1 if several else 2
    if len(names) < minimum:
        raise UserError(
            f"at least {minimum} class{'es are' if minimum > 1 else ' is'} needed, but the column "
            f"{table.columns.get(role, role)} holds " + (f"only {', '.join(sorted(names))!r}" if names else "none"),
            where=table.name,
            remedy=f"Check data.columns: {{{role}: <column>}} and data.limit.",
        )
    return in_order(names)


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted class names: by value if all are integers ("2" before "10"), else by code point."""
    names = list(names)
    return sorted(names, key=int) if all(INTEGER.fullmatch(name) for name in names) else sorted(names)


def _values(table: Table, role: str) -> Iterable[Any]:
    """The values of one role, without decoding whole rows (such as images) if the table supports it."""
    if hasattr(table, "values"):
        return table.values(role)
    return (row.get(role) for row in table)


class Labels:
    """Maps class names to indices and back. names: in the order of their indices."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._index = {name: index for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def index(self, value: Any) -> int:
        """The index of a label value. Raises: BadRow, with the nearest name, if it is not among the classes."""
        name = label_text(value)
        if name not in self._index:
            near = nearest_name(name, self.names)
            hint = f"; did you mean {near!r}?" if near else f"; the {len(self)} classes are {self._listed()}"
            raise BadRow(f"label {name!r} does not occur in the training data{hint}")
        return self._index[name]

    def indices(self, value: Any) -> list[int]:
        """The indices of a multi-label value (a list, or "a|b"), ascending. Raises: BadRow as `index` does."""
        return sorted(self.index(name) for name in label_texts(value))

    def _listed(self) -> str:
        shown = ", ".join(self.names[:10])
        return shown if len(self) <= 10 else f"{shown}, ..."
