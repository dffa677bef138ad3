"""A split as a table: the rows of its sources joined in order, or a subset of them."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain, compress
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRows, Listed
from finetune.data.prepare.cache import digest
from finetune.data.sources.rows import Rows
from finetune.data.table import Row

if TYPE_CHECKING:
    import numpy as np

TOGETHER = 256  # rows read in one piece
SPARSE = 4  # a piece of so many times as many rows as are wanted is not read
PartRows = tuple[Rows, dict[str, str]]  # rows of a file or set, and its mapping role -> column


class JoinedTable:
    """A `Table` over the rows of several parts in order.

    chosen: ids of the rows that belong to the table, int64, ascending; None: all rows.
    note: describes the choice; part of the fingerprint.
    fingerprint: identifies what is read. content: digest of the rows alone, the same on every machine.
    classes: role -> class names, if the data declares them.
    whole: the table from which this one and the held-out rows were chosen; None if no rows were held out.
    skipped: (location, reason) of the first 10,000 bad rows; skipped_count: the number of all bad rows.
    """

    def __init__(
        self, name: str, parts: Sequence[PartRows], bad: BadRows, chosen: np.ndarray | None = None, note: str = ""
    ) -> None:
        self.name, self._parts, self._bad, self._chosen = name, [rows for rows, _ in parts], bad, chosen
        self._with_columns = parts
        self.columns: Mapping[str, str] = {
            role: column for _, mapping in reversed(parts) for role, column in mapping.items()
        }
        self._ends = list(accumulate(len(rows) for rows in self._parts))
        self.fingerprint = digest("table", [rows.fingerprint for rows in self._parts], note)
        first = self._parts[0].classes
        same = all(dict(rows.classes) == dict(first) for rows in self._parts)
        self.classes: Mapping[str, Sequence[str]] = first if same else {}
        self.whole: JoinedTable | None = None
        self.skipped: list[Listed] = bad.listed
        self.skipped_count = bad.count

    @cached_property
    def content(self) -> str:
        """Digest of the contents of its sources, in order, and of which of their rows are chosen."""
        chosen = None if self._chosen is None else hashlib.blake2b(self._chosen.tobytes(), digest_size=16).hexdigest()
        return digest("table", [rows.content for rows in self._parts], chosen)

    def files(self) -> list[dict[str, Any]]:
        """[{"name", "rows", "content"}] of each source, in order."""
        return [{"name": rows.name, "rows": len(rows), "content": rows.content} for rows in self._parts]

    @property
    def sources(self) -> list[str]:
        """Names of the files or sets that the rows come from."""
        return [getattr(rows, "name", "") for rows in self._parts]

    def choose(self, name: str, chosen: np.ndarray, note: str) -> JoinedTable:
        """A table of some rows of this one. chosen: ids, ascending. note: describes the choice, for the fingerprint."""
        if self._chosen is not None:
            chosen = self._chosen[chosen]
        return JoinedTable(name, self._with_columns, self._bad if name == self.name else BadRows("skip"), chosen, note)

    def __len__(self) -> int:
        return self._ends[-1] if self._chosen is None else len(self._chosen)

    def _locate(self, index: int) -> tuple[Rows, int]:
        """(rows of the part, index within the part) of a row."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} in {self.name}")
        if self._chosen is not None:
            index = int(self._chosen[index])
        part = bisect_right(self._ends, index)
        return self._parts[part], index - (self._ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows, inner = self._locate(index)
        return rows[inner]

    def rows_between(self, first: int, last: int) -> list[Row]:
        """Rows [first, last), read in one piece where their part can do that and they lie close together."""
        if last <= first:
            return []
        (rows, start), (other, end) = self._locate(first), self._locate(last - 1)
        together = getattr(rows, "rows_between", None)
        if rows is not other or together is None or end - start >= SPARSE * (last - first):
            return [self[index] for index in range(first, last)]
        found = together(start, end + 1)
        if self._chosen is None:
            return found
        return [found[index] for index in (self._chosen[first:last] - self._chosen[first]).tolist()]

    def __iter__(self) -> Iterator[Row]:
        for first in range(0, len(self), TOGETHER):
            yield from self.rows_between(first, min(first + TOGETHER, len(self)))

    def values(self, role: str) -> Iterator[Any]:
        """The values of one role, None where a row has none; other columns, such as images, are not decoded."""
        if self._chosen is not None:
            import numpy as np

            mask = np.zeros(self._ends[-1], bool)
            mask[self._chosen] = True
            return compress(chain.from_iterable(rows.values(role) for rows in self._parts), mask)
        return chain.from_iterable(rows.values(role) for rows in self._parts)

    def named_files(self) -> Iterator[str]:
        """Paths of the images that rows of the parts name."""
        return chain.from_iterable(rows.named_files() for rows in self._parts)

    def place(self, index: int) -> str:
        rows, inner = self._locate(index)
        return rows.place(inner)
