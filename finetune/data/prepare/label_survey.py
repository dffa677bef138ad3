"""Which classes a column holds, how each is written and how often: from one pass over the values, kept in the cache."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.label_form_decision import decide_form
from finetune.data.label_forms import TAGS, LabelForm, split_labels, vector_positions
from finetune.data.labels import Labels, in_order, label_key, label_text, look_alikes, spellings_by_class
from finetune.data.prepare.cache import digest, publish
from finetune.data.table import Table, describe_table
from finetune.errors import UserError
from finetune.recipe.card import TaskCard

VERSION = 2
MAX_CLASSES = 100_000
SHOWN = 5  # classes named in one note

Kind = LabelForm | None
"""How labels are written: several per row in a form, or (None) one per row."""


@dataclass(frozen=True)
class Survey:
    """spellings: a label as JSON -> its count. unlabeled: rows without one. rows: all. reason: of the first bad value."""

    spellings: Mapping[str, int]
    unlabeled: int
    rows: int
    reason: str = ""

    @property
    def texts(self) -> dict[str, int]:
        """{text of a label: count}; values that are no labels are left out."""
        counts: Counter[str] = Counter()
        for written, count in self.spellings.items():
            try:
                counts[label_text(json.loads(written))] += count
            except BadRow:
                continue
        return dict(counts)

    @property
    def why_unusable(self) -> str:
        """Why a value is no label, in brackets; "" if all of them are."""
        try:
            for written in self.spellings:
                label_text(json.loads(written))
        except BadRow as bad:
            return f" ({bad})"
        return self.reason and f" ({self.reason})"


def column_values(table: Table, role: str) -> Iterable[Any]:
    """The values of one role, without decoding whole rows (such as images) if the table supports it."""
    if hasattr(table, "values"):
        return table.values(role)
    return (row.get(role) for row in table)


def column_name(table: Table, role: str) -> str:
    """What the data calls the column of a role."""
    return table.columns.get(role, role)


def declared_names(table: Table, role: str) -> list[str]:
    """Class names that the data itself declares, in order; [] for none."""
    classes: Mapping[str, Sequence[str]] = getattr(table, "classes", {})
    return list(classes.get(role, ()))


def whole_table(tables: Mapping[str, Table]) -> Table:
    """The training rows, with those that were held out of them: what both hold is known of all of them."""
    return getattr(tables["train"], "whole", None) or tables["train"]


def survey(table: Table, role: str, kind: Kind) -> Survey:
    """Count the labels of a column. Raises: UserError for more than 100,000 different ones."""
    own = getattr(table, "fingerprint", None)
    if not isinstance(own, str):
        return _count(table, role, kind)
    key = digest("labels", VERSION, own, role, kind.to_dict() if kind else None)

    def write(folder: Path) -> None:
        found = _count(table, role, kind)
        content = {
            "spellings": found.spellings,
            "unlabeled": found.unlabeled,
            "rows": found.rows,
            "reason": found.reason,
        }
        (folder / "survey.json").write_text(json.dumps(content), "utf-8")

    return Survey(
        **json.loads((publish("labels", key, write, about=describe_table(table)) / "survey.json").read_text("utf-8"))
    )


def _count(table: Table, role: str, kind: Kind) -> Survey:
    spellings: Counter[str] = Counter()
    unlabeled, rows, reason = 0, 0, ""
    for value in column_values(table, role):
        rows += 1
        try:
            items = [value] if kind is None else split_labels(value, kind)
            if kind is not None and kind.length:
                items = vector_positions(items, kind.length, kind.bits)
        except BadRow as bad:
            reason = reason or str(bad)
            continue  # reported with its place when it is encoded
        unlabeled += not items
        spellings.update(json.dumps(item, default=str) for item in items)
        if len(spellings) > MAX_CLASSES:
            raise UserError(
                f"the column {column_name(table, role)} has more than {MAX_CLASSES:,} distinct values",
                where=table.name,
                remedy=f"It is probably not the label: map another column with data.columns: {{{role}: <column>}}.",
            )
    return Survey(dict(spellings), unlabeled, rows, reason)


def label_form(
    table: Table, role: str, *, stated: Sequence[str] = (), separator: str = "from_data"
) -> tuple[LabelForm, str]:
    """(how several labels of a row are written, a line that tells it); see decide_form."""
    own, column = getattr(table, "fingerprint", None), column_name(table, role)

    def decide() -> tuple[LabelForm, str]:
        values = column_values(table, role)
        return decide_form(
            values,
            stated=stated,
            separator=separator,
            column=column,
            same=_compared,
            declared=declared_names(table, role),
        )

    if not isinstance(own, str):
        return decide()

    def write(folder: Path) -> None:
        form, described = decide()
        (folder / "form.json").write_text(json.dumps([form.to_dict(), described]), "utf-8")

    key = digest("label form", VERSION, own, role, list(stated), separator)
    form, described = json.loads(
        (publish("labels", key, write, about=describe_table(table)) / "form.json").read_text("utf-8")
    )
    return LabelForm.from_dict(form), described


def _compared(text: Any) -> str:
    return label_key(label_text(text))


def class_names(tables: Mapping[str, Table], role: str = "label", *, kind: Kind = None) -> list[str]:
    """The class names of the training data: in its own order if it declares them, integers by value, else A to Z.

    Rows that were held out of tables["train"] count as well. Bad labels are ignored here; encoding reports them with their
    rows.
    Raises: UserError if there are fewer than two classes (with several per row: none), or more than 100,000.
    """
    table = whole_table(tables)
    if declared := declared_names(table, role):
        return declared
    found = survey(table, role, kind)
    names = list(spellings_by_class(found.texts))
    minimum = 2 if kind is None else 1
    if len(names) < minimum:
        needed = f"at least {minimum} class{'es are' if minimum > 1 else ' is'} needed"
        held = f"only {', '.join(sorted(names))!r}" if names else "none"
        raise UserError(
            f"{needed}, but the column {column_name(table, role)} holds {held}" + found.why_unusable,
            where=table.name,
            remedy=f"Check data.columns: {{{role}: <column>}} and data.limit.{_list_hint(table, role, kind)}",
        )
    return in_order(names)


def _list_hint(table: Table, role: str, kind: Kind) -> str:
    first = next((value for value in column_values(table, role) if value is not None), None)
    return " Lists of labels need options.problem: multi_label." if kind is None and isinstance(first, list) else ""


@dataclass(frozen=True)
class RowClasses:
    """The classes of each row of a table, as the keys that labels are compared by; [] for a label that is none.

    identity: what they depend on besides the rows.
    """

    table: Table
    role: str
    kind: Kind

    @property
    def identity(self) -> list[Any]:
        return [self.role, self.kind.to_dict() if self.kind else None]

    def __iter__(self) -> Iterator[list[str]]:
        return map(self._keys, column_values(self.table, self.role))

    def _keys(self, value: Any) -> list[str]:
        try:
            if isinstance(value, Mapping):  # the objects of an image
                value = value.get("category") or []
            elif isinstance(value, list) and value and isinstance(value[0], Mapping):
                value = [one.get("category") for one in value if isinstance(one, Mapping)]
            items = [value] if self.kind is None else split_labels(value, self.kind)
            if self.kind is not None and self.kind.length:
                return [str(position) for position in vector_positions(items, self.kind.length, self.kind.bits)]
            return [_compared(item) for item in items]
        except BadRow:
            return []


def row_classes(table: Table, card: TaskCard, options: Any) -> RowClasses | None:
    """The classes of the rows of a task that has classes; None for other tasks. options: the recipe's section."""
    role = card.rows.class_role
    if not role:
        return None
    if card.rows.has_label_sets(options):
        stated, separator = getattr(options, "labels", ()), getattr(options, "label_separator", "from_data")
        return RowClasses(table, role, label_form(table, role, stated=stated, separator=separator)[0])
    return RowClasses(table, role, None if role == "label" else TAGS)


def label_notes(table: Table, role: str, labels: Labels, *, kind: Kind) -> list[str]:
    """What was unified in a column, and how many rows have no label: one line each, with counts."""
    found = survey(table, role, kind)
    notes = []
    if kind is not None and kind != TAGS and found.unlabeled:
        notes.append(f"{found.unlabeled:,} of {found.rows:,} rows have no label: none of the classes applies to them")
    if kind is None or not kind.length:
        notes += _unified(found, labels, column_name(table, role))
    return [f"{table.name}: {note}" for note in notes]


def labels_by_class(table: Table, role: str, labels: Labels, *, kind: Kind) -> dict[str, int]:
    """How often each class occurs in a column; labels that are none are left out. {"negative": 3310, "positive": 3610}"""
    counts = dict.fromkeys(labels.names, 0)
    vector = kind is not None and bool(kind.length)
    for written, count in survey(table, role, kind).spellings.items():
        label = json.loads(written)
        try:
            index = int(label) if vector else labels.index(label)
        except BadRow:
            continue
        counts[labels.names[index]] += count
    return counts


def _unified(found: Survey, labels: Labels, column: str) -> list[str]:
    """A line that names labels that are written in several ways, or otherwise than their class."""
    ways: dict[int, Counter[str]] = {}
    for written, count in found.spellings.items():
        try:
            index = labels.index(json.loads(written))
        except BadRow:
            continue
        ways.setdefault(index, Counter())[written] += count
    names = labels.names
    varied = [
        (names[index], spellings)
        for index, spellings in sorted(ways.items())
        if len(spellings) > 1 or _name_of(next(iter(spellings))) != names[index]
    ]
    if not varied:
        return []
    shown = "; ".join(
        f"{name}: " + ", ".join(f"{written} {count:,}" for written, count in spellings.most_common(SHOWN))
        for name, spellings in varied[:SHOWN]
    )
    more = f"; and {len(varied) - SHOWN:,} more classes" if len(varied) > SHOWN else ""
    several = "1 class is" if len(varied) == 1 else f"{len(varied):,} classes are"
    return [f"{column}: {several} written in more than one way, or differently than in training: {shown}{more}"]


def _name_of(written: str) -> str:
    """The name as it is written, bare: only numbers and booleans have another form as a name."""
    value = json.loads(written)
    return value if isinstance(value, str) else label_text(value)


def look_alike_notes(names: Sequence[str], column: str) -> list[str]:
    """A line that names classes that people may take for one."""
    groups = look_alikes(names)
    if not groups:
        return []
    shown = "; ".join(" and ".join(map(repr, group)) for group in groups[:SHOWN])
    more = f"; and {len(groups) - SHOWN:,} more" if len(groups) > SHOWN else ""
    return [f"{column}: classes that look alike are kept apart: {shown}{more}"]
