"""Rows made into examples once, kept memory-mapped in the cache, and found there by every rank and the next run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRow, BadRows, Listed
from finetune.data.prepare.cache import digest, publish
from finetune.data.prepare.record_codec import Packer, unpack
from finetune.data.prepare.records import RecordFile, RecordWriter
from finetune.data.table import Row, Table
from finetune.units import format_seconds

if TYPE_CHECKING:
    import numpy as np

VERSION = 1  # of the layout on disk
ROWS = 256  # encoded together
TOLD_SECONDS = 5.0  # between two lines of progress


EncodeRows = Callable[[Sequence[Row]], Sequence["dict[str, Any] | BadRow"]]


class EncodedExamples:
    """Examples of one split, memory-mapped. ids, costs: int64 [examples]. skipped: (place, why) of the rows left out.

    An item is a fresh dict: {"id": row id, **what the function returned}; lists of integers come back as int64 arrays.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        facts = json.loads((folder / "facts.json").read_text("utf-8"))
        self.folder, self.name = folder, name
        self._records = RecordFile(folder)
        self._layouts = [[(key, kind) for key, kind in layout] for layout in facts["layouts"]]
        self.ids: np.ndarray = self._records.numbers("ids")
        self.costs: np.ndarray = self._records.numbers("costs")
        self.skipped: list[Listed] = [(place, why) for place, why in facts["skipped"]]
        self.skipped_count: int = facts["skipped_count"]  # the list ends at 10,000

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        example = {"id": int(self.ids[index])}
        example.update(unpack(self._records[index], self._layouts))
        return example

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[type[EncodedExamples], tuple[Path, str]]:
        return EncodedExamples, (self.folder, self.name)


class LazyExamples:
    """Examples made when asked for (images): function(row, id) -> the encoded example. Nothing is stored.

    function must be picklable if loader processes are spawned, and is called anew each time: augmentation is its own.
    """

    def __init__(
        self, table: Table, ids: Sequence[int], function: Callable[[Row, int], dict[str, Any]], costs: Sequence[int]
    ) -> None:
        import numpy as np

        self.table, self.function = table, function
        self.ids: np.ndarray = np.asarray(ids, np.int64)
        self.costs: np.ndarray = np.asarray(costs, np.int64)
        if len(self.ids) != len(self.costs):
            raise ValueError(f"{len(self.ids)} ids and {len(self.costs)} costs")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row_id = int(self.ids[index])
        return {"id": row_id, **self.function(self.table[row_id], row_id)}


def encode(
    table: Table,
    function: EncodeRows,
    *,
    key: str,
    on_bad_row: str,
    cost: Callable[[dict[str, Any]], int],
    notify: Callable[[str], None] | None = None,
) -> EncodedExamples:
    """Every row of `table` through `function`, in batches, once; found in the cache if table and key are the same.

    key: names everything that `function` and `cost` depend on: the tokenizer's hash, options, lengths, label names.
    function: rows -> for each of them {name: ints, lists of ints, arrays, or anything that JSON holds}, or a BadRow.
    cost: work of an encoded example (tokens, pixels). tell: takes lines of progress.
    Raises: UserError with the places of the bad rows if on_bad_row is "error".
    """
    fingerprint = table_fingerprint(table)
    folder = publish(
        "examples",
        digest("examples", VERSION, fingerprint, key),
        lambda folder: _write(folder, table, function, cost, notify),
    )
    examples = EncodedExamples(folder, table.name)
    bad = BadRows(on_bad_row, examples.skipped, examples.skipped_count)
    bad.settle(table.name)
    if bad.count and notify is not None:
        notify(f"{table.name}: {bad.count:,} of {len(table):,} rows skipped\n{bad.told()}")
    return examples


def table_fingerprint(table: Table) -> str:
    """What names a table's content: its own fingerprint, or else a digest of every row."""
    own = getattr(table, "fingerprint", None)
    return own if isinstance(own, str) else digest("rows", [dict(row) for row in table])


def _write(
    folder: Path,
    table: Table,
    function: EncodeRows,
    cost: Callable[[dict[str, Any]], int],
    notify: Callable[[str], None] | None,
) -> None:
    bad, packer, total = BadRows(), Packer(), len(table)
    clock = _Clock(table.name, total, notify)
    with RecordWriter(folder, tags=("ids", "costs")) as writer:
        for first, rows in _batches(table):
            for row_id, encoded in enumerate(function(rows), start=first):
                if isinstance(encoded, BadRow):
                    bad.add(table.place(row_id), str(encoded))
                else:
                    writer.append(packer.pack(encoded), row_id, int(cost(encoded)))
            clock.tick(first + len(rows))
    facts = {"layouts": packer.layouts, "skipped": bad.listed, "skipped_count": bad.count}
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def _batches(table: Table) -> Iterator[tuple[int, list[Row]]]:
    """(id of the first row, rows), ROWS at a time."""
    rows: list[Row] = []
    for row_id, row in enumerate(table):
        rows.append(row)
        if len(rows) == ROWS:
            yield row_id + 1 - len(rows), rows
            rows = []
    if rows:
        yield len(table) - len(rows), rows


class _Clock:
    """A line every few seconds, so that long work is seen to go on."""

    def __init__(self, name: str, total: int, notify: Callable[[str], None] | None) -> None:
        self._name, self._total, self._tell = name, total, notify
        self._started = self._told = time.monotonic()

    def tick(self, done: int) -> None:
        now = time.monotonic()
        if self._tell is None or now - self._told < TOLD_SECONDS:
            return
        self._told = now
        left = (now - self._started) / done * (self._total - done)
        self._tell(f"{self._name}: {done:,} of {self._total:,} rows encoded, {format_seconds(left)} left")
