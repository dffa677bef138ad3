"""Rows to be asked, one after the other: numbered over all sources, bad ones included, in memory that does not grow.

A table of training rows is converted and published before the first of them is used (sources/tables.py); a stream is read
once, from the front or from a row on, and never held as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from finetune.data.bad_rows import BadRow
from finetune.data.columns import ColumnSpec, apply_roles, check_required, value_at
from finetune.data.image_values import resolve_image
from finetune.data.table import Row
from finetune.data.values import OddValues, check_text, lone_surrogate, without_nan
from finetune.errors import EmptyData
from finetune.recipe.card import TaskCard
from finetune.recipe.roles import IMAGES

WITHOUT_TARGET = "answered without its target, which cannot be used"  # begins a notice


@dataclass(frozen=True)
class StreamRow:
    """number: from 0, over all sources in order. place: where it came from, such as "new.jsonl:17".

    row: with roles as keys, or why it cannot be read. kept: columns that the answer is to stand beside, under the names of
    the data, as JSON values; those of a bad row as far as they could be read. notices: what was left out of the row.
    """

    number: int
    place: str
    row: Row | BadRow
    kept: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


class RowStream(Protocol):
    """Rows of one or more sources.

    name: for people. columns: role -> column, of the sources together. kept: names under which columns are kept, in order;
    kept_types: of those whose values are all of one type: text, number, integer or truth.
    labeled: the data has columns for all roles that say what the answers should be. resumable: `rows` may be called more
    than once, and with a start. notes: what a user should know of how the sources are read; complete when all rows were.
    """

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> Mapping[str, str]: ...

    @property
    def kept(self) -> Sequence[str]: ...

    @property
    def kept_types(self) -> Mapping[str, str]: ...

    @property
    def labeled(self) -> bool: ...

    @property
    def resumable(self) -> bool: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def identity(self) -> list[Any]:
        """JSON values that change with the content of the sources or how they are read; [] where nobody can know it."""
        ...

    def estimate(self) -> int | None:
        """About how many rows there are, for a progress line; None where that is not known cheaply."""
        ...

    def rows(self, start: int = 0) -> Iterator[StreamRow]:
        """The rows from number `start` on, in order.

        Raises: UserError for a source that cannot be read on, that changed since the stream was opened, or that holds no
        row at all.
        """
        ...


@dataclass(frozen=True)
class AskedRows:
    """How raw rows become rows that are asked. spec: of a card made by TaskCard.for_asking. mapping: role -> column.

    keep: name beside the answer -> column. base: the folder that paths in rows are relative to; None: the current one.
    """

    spec: ColumnSpec
    mapping: Mapping[str, str]
    keep: Mapping[str, str] = field(default_factory=dict)
    base: Path | None = None

    def read(self, number: int, place: str, raw: Mapping[str, Any] | BadRow) -> StreamRow:
        """One row; its text is checked, and what is missing is reported."""
        if isinstance(raw, BadRow):
            return StreamRow(number, place, raw)
        kept = {name: json_value(value_at(raw, column)) for name, column in self.keep.items()}
        notices: list[str] = []
        try:
            row = apply_roles(raw, self.mapping)
            check_required(row, self.spec.required, self.mapping)
            for role, column in self.mapping.items():
                if role not in IMAGES:
                    self._check_text(row, role, column, notices)
                elif self.base is not None and row.get(role) is not None:
                    row[role] = resolve_image(row[role], self.base)
        except BadRow as bad:
            return StreamRow(number, place, bad, kept)
        return StreamRow(number, place, row, kept, tuple(notices))

    def _check_text(self, row: dict[str, Any], role: str, column: str, notices: list[str]) -> None:
        """Raises: BadRow for text that is none. A target that is none is taken out: it costs its score, not the answer."""
        try:
            check_text(row.get(role), column)
        except BadRow as bad:
            if role not in self.spec.card.rows.targets:
                raise
            del row[role]
            notices.append(f"{WITHOUT_TARGET}: {bad}")


def json_value(value: Any) -> Any:
    """A value of a row as JSON has it: null for NaN and bytes, text for dates; halves of surrogate pairs as "?"."""
    value = without_nan(value)
    if isinstance(value, Mapping):
        return {str(json_value(name)): json_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if isinstance(value, str):
        return value if lone_surrogate(value) is None else value.encode("utf-8", "replace").decode("utf-8")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return None if isinstance(value, (bytes, bytearray, memoryview)) else str(value)


def is_labeled(card: TaskCard, columns: Collection[str]) -> bool:
    """Whether there are columns for what the answers of a task should be. columns: roles that the data has."""
    wanted = [roles for roles in card.rows.required if set(roles) & set(card.rows.targets)]
    if not wanted:  # of language models: the reply is one of several roles, or the end of a conversation
        return any(role in columns for role in card.rows.targets) or "messages" in columns
    return all(any(role in columns for role in roles) for roles in wanted)


class MemoryStream:
    """Rows that are in memory, such as those of a notebook or of a request. Row i is located at "<name> row i".

    Raises: UserError if the first row lacks a required column, with the nearest name.
    """

    resumable = True

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        card: TaskCard,
        *,
        columns: Mapping[str, str] | None = None,
        keep: Sequence[str] = (),
        name: str = "rows",
    ) -> None:
        asked = card.for_asking()
        available = list(dict.fromkeys(column for row in islice(rows, 1_000) for column in row))
        spec = ColumnSpec(asked, columns or {}, asked.rows.required)
        self.name, self._rows = name, rows
        self.columns: Mapping[str, str] = spec.resolve(available, name) if rows else {}
        self.kept: Sequence[str] = list(keep)
        self.kept_types: Mapping[str, str] = {}
        self.labeled = is_labeled(card, self.columns)
        self._odd = OddValues()
        self._asked = AskedRows(spec, self.columns, {column: column for column in keep})

    @property
    def notes(self) -> Sequence[str]:
        """See RowStream."""
        return self._odd.notes()

    def identity(self) -> list[Any]:
        """Nothing outside of this process can refer to them."""
        return []

    def estimate(self) -> int | None:
        """See RowStream."""
        return len(self._rows)

    def rows(self, start: int = 0) -> Iterator[StreamRow]:
        """The rows from number `start` on. Raises: UserError if there is none at all."""
        if not self._rows:
            raise EmptyData("there are no rows", where=self.name, remedy="Give at least one row.")
        self._odd = OddValues()
        for number in range(start, len(self._rows)):
            place, raw = f"{self.name} row {number}", self._rows[number]
            self._odd.look(raw, self.columns, place, words=False)
            yield self._asked.read(number, place, raw)
