"""The rows of one file, folder or set as they are written, from the front or from a row on; nothing of them is kept.

Columns are known from a header, a footer or the first rows.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRow, BlankLine
from finetune.data.formats.compression import unreadable
from finetune.data.formats.lines import NumberedRow, count_lines, describe_number, read_jsonl_after
from finetune.data.formats.registry import ASKED_READERS, READ_OPTIONS, files_of
from finetune.data.formats.standard_input import NAME, STDIN, standard_input
from finetune.data.prepare.file_digest import Stat, file_stat
from finetune.data.sources.located import display_path
from finetune.data.sources.peek import head_of
from finetune.data.sources.sampled_digest import quick_digest
from finetune.errors import EmptyData, UserError
from finetune.recipe.data import SourceSection
from finetune.units import format_bytes

if TYPE_CHECKING:
    import pyarrow as pa

RawRow = Mapping[str, Any] | BadRow
Placed = tuple[str, RawRow]  # (where the row came from, the row under the names of its columns)
PIECE_ROWS = 256  # of typed columns, converted together


class RawRows(ABC):
    """name: for people. columns, nested: as peek.Head has them. hint: what to do if a column is not found, or "".

    field_types: column -> "text", "number", "integer" or "truth", where all rows have that type. unkeepable: columns that
    hold bytes. base: the folder that paths in rows are relative to; None: the current one. words: text may stand for null.
    lines: rows are lines of plain text. notes: of how the rows are read; complete after the last one.
    """

    name: str
    columns: Sequence[str]
    nested: Sequence[str] = ()
    hint: str = ""
    field_types: Mapping[str, str] = MappingProxyType({})
    unkeepable: frozenset[str] = frozenset()
    base: Path | None = None
    words: bool = False
    lines: bool = False
    resumable: bool = True

    @property
    def notes(self) -> Sequence[str]:
        return ()

    @abstractmethod
    def after(self, skip: int) -> tuple[int, Iterator[Placed]]:
        """(rows that were skipped, those after them); fewer than `skip` if there are no more.

        Raises: UserError if the source cannot be read, or is no longer as it was when it was opened.
        """

    @abstractmethod
    def identity(self) -> list[Any]:
        """JSON values that change with the rows."""

    def estimate(self) -> int | None:
        """About how many rows there are, for a progress line; None where that takes as long as to read them."""
        return None


class TextRows(RawRows):
    """Rows of a file that one of READERS reads, or of standard input. See RawRows."""

    def __init__(self, path: Path, file_format: str, source: SourceSection) -> None:
        """Raises: UserError for a file that is empty, unreadable, or not of this format."""
        self._path, self._format, self._source = path, file_format, source
        self._is_pipe = path == STDIN
        self.name = NAME if self._is_pipe else display_path(path)
        self._files: list[Path] = [] if self._is_pipe else files_of(path, file_format, source)
        self._stats = self._stat()
        head = head_of(path, file_format, source)
        self.columns, self.nested, self.hint = head.columns, head.nested, head.hint
        self._notes, self._blank, self._first_blank = list(head.notes), 0, 0
        self.base = None if self._is_pipe else path.parent
        self.words, self.lines = file_format in ("csv", "tsv"), file_format == "text"
        self.resumable = not self._is_pipe

    @property
    def notes(self) -> list[str]:
        """Blank lines of plain text and of one column as well: answers are numbered by rows, not by lines."""
        if not self._blank:
            return self._notes
        lines = "1 blank line is no row" if self._blank == 1 else f"{self._blank:,} blank lines are no rows"
        return [*self._notes, f"{lines} (the first is line {self._first_blank:,})"]

    def _stat(self) -> list[Stat]:
        try:
            return [file_stat(file) for file in self._files]
        except OSError as error:
            raise unreadable(self._path, error) from error

    def after(self, skip: int) -> tuple[int, Iterator[Placed]]:
        """See RawRows."""
        self._check()
        if self._is_pipe:
            standard_input().read_on()
        self._blank = 0
        if self._format == "jsonl":
            skipped, rows = read_jsonl_after(self._path, self._source, skip)
        else:
            rows = self._without_blank(ASKED_READERS[self._format](self._path, self._source))
            skipped = sum(1 for _ in islice(rows, skip))
        return skipped, self._placed(rows)

    def _without_blank(self, rows: Iterator[NumberedRow]) -> Iterator[NumberedRow]:
        for line, row in rows:
            if isinstance(row, BlankLine):
                self._first_blank = self._first_blank or line
                self._blank += 1
            else:
                yield line, row

    def _placed(self, rows: Iterator[NumberedRow]) -> Iterator[Placed]:
        """The last row is handed out when the file was seen not to have changed: it may have been cut."""
        held: Placed | None = None
        for line, row in rows:
            if held is not None:
                yield held
            held = self._place(line, row), row
        self._check()
        if held is not None:
            yield held

    def _place(self, number: int, row: RawRow) -> str:
        if number:
            return f"{self.name}{describe_number(number)}"
        return self.name if isinstance(row, BadRow) else display_path(row["image"])

    def _check(self) -> None:
        """Raises: UserError if the file changed since it was opened."""
        for file, before, now in zip(self._files, self._stats, self._stat(), strict=True):
            if before == now:
                continue
            grown = f", from {format_bytes(before[0])} to {format_bytes(now[0])}" if before[0] != now[0] else ""
            raise UserError(
                f"the file changed while it was read{grown}",
                where=display_path(file),
                remedy="Give a file that nothing writes to any more: copy it, or pipe it into --data -.",
            )

    def estimate(self) -> int | None:
        """Lines of a file with one row per line; a quoted line break counts as one more."""
        by_line = self._format in ("jsonl", "csv", "tsv") or (
            self._format == "text" and self._source.sample_by == "line"
        )
        lines = count_lines(self._path) if by_line and not self._is_pipe else None
        has_header = self.words and not self._source.header
        return lines if lines is None or not has_header else max(0, lines - 1)

    def identity(self) -> list[Any]:
        """See RawRows."""
        if self._is_pipe:
            return []
        options = self._source.model_dump(mode="json", include=set(READ_OPTIONS))
        split = [self._source.split] if self._source.split else []
        return [self._format, options, [quick_digest(file) for file in self._files], *split]


class TypedRows(RawRows):
    """Rows of typed columns. See RawRows.

    batches: called with the number of a row, gives the record batches from it on; picklable. count: rows. identity: names
    and paths of files, whose contents count.
    """

    def __init__(
        self,
        name: str,
        schema: pa.Schema,
        count: int,
        batches: Callable[[int], Iterator[pa.RecordBatch]],
        identity: Sequence[str | Path],
    ) -> None:
        from finetune.data.sources.peek import nested_names
        from finetune.data.sources.typed_values import field_types, holds_bytes

        if not count:
            raise EmptyData("is empty", where=name, remedy="Give data with rows.")
        self.name, self._schema, self._count, self._batches = name, schema, count, batches
        self.columns, self.nested = list(schema.names), nested_names(schema)
        self.field_types = field_types(schema)
        self.unkeepable = frozenset(field.name for field in schema if holds_bytes(field.type))
        self._identity = list(identity)

    def estimate(self) -> int | None:
        """See RawRows."""
        return self._count

    def identity(self) -> list[Any]:
        """See RawRows."""
        return [quick_digest(item) if isinstance(item, Path) else item for item in self._identity]

    def after(self, skip: int) -> tuple[int, Iterator[Placed]]:
        """See RawRows."""
        return (self._count, iter(())) if skip >= self._count else (skip, self._placed(skip))

    def _placed(self, first: int) -> Iterator[Placed]:
        from finetune.data.sources.typed_values import TypedReader

        reader = TypedReader(self._schema)
        number = first
        for batch in self._batches(first):
            for start in range(0, batch.num_rows, PIECE_ROWS):
                for row in reader.rows(batch.slice(start, PIECE_ROWS)):
                    yield f"{self.name} row {number}", row
                    number += 1


class ImageRows(RawRows):
    """Image files: those of a folder with their classes, or files by name. See RawRows."""

    field_types = MappingProxyType({"image": "text", "label": "text"})

    def __init__(
        self, name: str, base: Path, images: Sequence[tuple[str, str | None]], notes: Sequence[str] = ()
    ) -> None:
        """images: (path relative to `base`, class or None) of each, in order."""
        self.name, self.base, self._folder, self._images, self._notes = name, base, base, images, list(notes)
        self.columns = ["image", "label"] if any(label is not None for _, label in images) else ["image"]

    @property
    def notes(self) -> Sequence[str]:
        return self._notes

    def estimate(self) -> int | None:
        """See RawRows."""
        return len(self._images)

    def after(self, skip: int) -> tuple[int, Iterator[Placed]]:
        """See RawRows."""
        if skip >= len(self._images):
            return len(self._images), iter(())
        base = self._folder
        return skip, (
            (display_path(base / path), {"image": path, "label": label}) for path, label in self._images[skip:]
        )

    def identity(self) -> list[Any]:
        """Names, sizes and modification times: images are not read for it."""
        return ["images", [[path, label, *_size_and_time(self._folder / path)] for path, label in self._images]]


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - Path takes three times as long, for each image
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
