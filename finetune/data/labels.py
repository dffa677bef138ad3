"""Class names: found in the training data, in an order that is always the same, and looked up with a helpful error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.columns import nearest_name
from finetune.data.table import Table
from finetune.errors import UserError

WHOLE = re.compile(r"0|-?[1-9][0-9]*")
MOST_CLASSES = 100_000
SEPARATOR = "|"  # between the labels of one row that has several


def label_text(value: Any) -> str:
    """The name of a label however it is written: 1, "1", " 1 " and 1.0 are all "1"; true is "true".

    Raises: BadRow if it is no label.
    """
    if isinstance(value, str):
        text = value.strip()
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int):
        text = str(value)
    elif isinstance(value, float):
        if not value.is_integer():
            raise BadRow(f"label {value} is neither a name nor a whole number")
        text = str(int(value))
    elif value is None:
        raise BadRow("no label")
    else:
        raise BadRow(f"a label is a name or a number, not {type(value).__name__}")
    if not text:
        raise BadRow("the label is empty")
    return text


def label_texts(value: Any) -> list[str]:
    """The names of several labels: a list of them, or text with | between; none is allowed, twice the same is one."""
    if isinstance(value, str):
        items: Iterable[Any] = [part for part in value.split(SEPARATOR) if part.strip()]
    elif isinstance(value, (list, tuple)):
        items = value
    else:
        items = [value]
    return list(dict.fromkeys(label_text(item) for item in items))


def class_names(tables: Mapping[str, Table], role: str = "label", *, several: bool = False) -> list[str]:
    """The classes of tables["train"]: in the data's own order if it names them, whole numbers by value, else A to Z.

    several: a row holds a list of labels, or "a|b". Bad labels are passed over here: encoding tells them, with places.
    Raises: UserError if there are fewer than two classes, or more than anyone has.
    """
    table = tables["train"]
    named: Mapping[str, Sequence[str]] = getattr(table, "classes", {})
    if role in named:
        return list(named[role])
    found: set[str] = set()
    for value in _values(table, role):
        try:
            found.update(label_texts(value) if several else (label_text(value),))
        except BadRow:
            continue
        if len(found) > MOST_CLASSES:
            raise UserError(
                f"the column {table.columns.get(role, role)} has more than {MOST_CLASSES:,} different values",
                where=table.name,
                remedy=f"It hardly holds classes: map another one with data.columns: {{{role}: <column>}}",
            )
    if len(found) < (1 if several else 2):
        raise UserError(
            f"classes to tell apart are needed, but the column {table.columns.get(role, role)} holds "
            + (f"only {', '.join(sorted(found))!r}" if found else "none"),
            where=table.name,
            remedy=f"Check data.columns: {{{role}: <column>}} and data.limit.",
        )
    return in_order(found)


def in_order(names: Iterable[str]) -> list[str]:
    """Whole numbers by value ("2" before "10"), anything else by code point."""
    names = list(names)
    return sorted(names, key=int) if all(WHOLE.fullmatch(name) for name in names) else sorted(names)


def _values(table: Table, role: str) -> Iterable[Any]:
    """One column's values, without decoding whole rows (images!) where the table can do so."""
    if hasattr(table, "values"):
        return table.values(role)
    return (row.get(role) for row in table)


class Labels:
    """Names of classes by index, and back."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._index = {name: index for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def index(self, value: Any) -> int:
        """The index of a label as the data writes it. Raises: BadRow, with the nearest name, if it was never seen."""
        name = label_text(value)
        if name not in self._index:
            near = nearest_name(name, self.names)
            hint = f"; did you mean {near!r}?" if near else f"; the {len(self)} classes are {self._listed()}"
            raise BadRow(f"label {name!r} is in no row of the training data{hint}")
        return self._index[name]

    def indices(self, value: Any) -> list[int]:
        """The indices of several labels (a list, or "a|b"), ascending. Raises: BadRow as `index` does."""
        return sorted(self.index(name) for name in label_texts(value))

    def _listed(self) -> str:
        shown = ", ".join(self.names[:10])
        return shown if len(self) <= 10 else f"{shown}, ..."
