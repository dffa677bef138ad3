"""Opens sources as a stream of rows that are asked: files of every format, folders, images, sets, standard input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.data.columns import ColumnSpec
from finetune.data.sources.asked_columns import ColumnChoice, choose_columns
from finetune.data.sources.kept_columns import choose_kept
from finetune.data.sources.open_parts import Notify, open_parts
from finetune.data.sources.raw_rows import RawRows
from finetune.data.sources.streams import AskedRows, StreamRow, is_labeled
from finetune.data.values import OddValues
from finetune.errors import EmptyData, UserError
from finetune.recipe.card import TaskCard
from finetune.recipe.data import SourceSection


def _silent(text: str) -> None:
    """Discard a message."""


def open_stream(
    sources: Sequence[SourceSection],
    card: TaskCard,
    *,
    columns: ColumnChoice | None = None,
    keep: Sequence[str] = (),
    reserved: Sequence[str] = (),
    notify: Notify = _silent,
) -> SourceStream:
    """The rows of sources, one after the other. Only the head of each is read.

    card: of the task. columns: which hold what. keep: columns that stand beside the answers, as kept_columns takes them;
    reserved: names that they cannot have. notify: is called with progress lines of downloads.
    Raises: UserError for a source or a column that is missing, a format that is not known, and data without rows.
    """
    parts = [part for source in sources for part in open_parts(source, notify)]
    if not parts:
        raise UserError("no data is given", where="--data", remedy="Name a file, a folder, or - for standard input.")
    return SourceStream(parts, card, columns or ColumnChoice(), keep, reserved)


class SourceStream:
    """A RowStream over the parts of sources, in order."""

    def __init__(
        self,
        parts: Sequence[RawRows],
        card: TaskCard,
        columns: ColumnChoice,
        keep: Sequence[str] = (),
        reserved: Sequence[str] = (),
    ) -> None:
        self._parts, self._odd = parts, OddValues()
        asked = card.for_asking()
        kept, self._notes = choose_kept(keep, parts, reserved)
        self.kept: Sequence[str] = list(kept)
        self.kept_types: Mapping[str, str] = _common_types(kept, parts)
        self._asked: list[AskedRows] = []
        for part in parts:
            mapping = choose_columns(part, asked, columns)
            spec = ColumnSpec(asked, mapping, asked.rows.required)
            self._asked.append(AskedRows(spec, mapping, kept, part.base))
        self.columns: Mapping[str, str] = {
            role: column for one in reversed(self._asked) for role, column in one.mapping.items()
        }
        self.labeled = all(is_labeled(card, one.mapping) for one in self._asked)
        self.resumable = all(part.resumable for part in parts)
        first, others = parts[0].name, len(parts) - 1
        self.name = first if not others else f"{first} and {others:,} more"

    @property
    def notes(self) -> list[str]:
        """See RowStream."""
        found = [(part.name, note) for part in self._parts for note in part.notes]
        read = {role: column for role, column in self.columns.items() if role != column}
        named = ", ".join(f"{column} as {role}" for role, column in read.items())
        return [
            *([f"columns read: {named} (change with --columns)"] if named else []),
            *self._notes,
            *(f"{name}: {note}" for name, note in dict.fromkeys(found)),
            *self._odd.notes(),
        ]

    def identity(self) -> list[Any]:
        """See RowStream."""
        if not self.resumable:
            return []
        mappings = [[dict(one.mapping), dict(one.keep)] for one in self._asked]
        return [[part.identity(), mapping] for part, mapping in zip(self._parts, mappings, strict=True)]

    def estimate(self) -> int | None:
        """See RowStream."""
        found = [part.estimate() for part in self._parts]
        return None if None in found else sum(count for count in found if count is not None)

    def rows(self, start: int = 0) -> Iterator[StreamRow]:
        """See RowStream."""
        number = 0
        self._odd = OddValues()
        for part, asked in zip(self._parts, self._asked, strict=True):
            skipped, placed = part.after(max(0, start - number))
            number += skipped
            for place, raw in placed:
                if isinstance(raw, Mapping):
                    self._odd.look(raw, asked.mapping, place, words=part.words)
                yield asked.read(number, place, raw)
                number += 1
        if not number:
            raise EmptyData("there are no rows", where=self.name, remedy="Give data that has rows.")


def _common_types(kept: Mapping[str, str], parts: Sequence[RawRows]) -> dict[str, str]:
    """{name: type} of the kept columns that have the same known type in all parts."""
    types = {}
    for name, column in kept.items():
        found = {part.field_types.get(column, "") for part in parts}
        if len(found) == 1 and "" not in found:
            types[name] = found.pop()
    return types
