"""Encodes the rows of a split into examples, once; the result is memory-mapped from the cache by all ranks and runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRow, BadRows, Listed
from finetune.data.prepare.cache import digest, publish
from finetune.data.prepare.notices import KEY, Notices
from finetune.data.prepare.record_codec import Packer, unpack
from finetune.data.prepare.records import RecordFile, RecordWriter
from finetune.data.table import Row, Table
from finetune.units import format_seconds

if TYPE_CHECKING:
    import numpy as np

VERSION = 1  # of the layout on disk
ROWS = 256  # encoded together
PROGRESS_SECONDS = 5.0  # between two progress lines


EncodeRows = Callable[[Sequence[Row]], Sequence["dict[str, Any] | BadRow"]]


class EncodedExamples:
    """Encoded examples of one split, memory-mapped. Pickles as the path of its folder.

    Each item is a new dict: {"id": row id, ...} with the values that the encode function returned, except that lists of
    integers are int64 arrays.

    ids, costs: int64 [examples].
    skipped: (location, reason) of the first 10,000 bad rows; skipped_count: the number of all bad rows.
    notices: what was left out or changed in rows that are used.
    """

    def __init__(self, folder: Path, name: str = "") -> None:
        facts = json.loads((folder / "facts.json").read_text("utf-8"))
        self.folder, self.name = folder, name
        self._records = RecordFile(folder)
        self._layouts = [[(key, kind) for key, kind in layout] for layout in facts["layouts"]]
        self.ids: np.ndarray = self._records.numbers("ids")
        self.costs: np.ndarray = self._records.numbers("costs")
        self.skipped: list[Listed] = [(place, reason) for place, reason in facts["skipped"]]
        self.skipped_count: int = facts["skipped_count"]
        self.notices = Notices(facts.get("notices", ()))

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
    """Examples that are encoded on access, such as images; nothing is stored.

    function: (row, row id) -> the encoded example. It is called at every access, so it may augment at random, and it
    must be picklable if data loader workers are spawned.
    ids, costs: [examples].
    Raises: ValueError if ids and costs differ in length.
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
    """Encode every row of `table` with `function`, or load the result from the cache if table and key are the same.

    function: rows -> for each of them {name: integer, list of integers, array, or any JSON value}, or a BadRow. The
    sentences under "notices" are not stored with the example but counted (`EncodedExamples.notices`).
    key: identifies everything that `function` and `cost` depend on: tokenizer hash, options, lengths, label names.
    on_bad_row: "error" or "skip". cost: encoded example -> its cost (tokens, pixels).
    notify: is called with progress lines and with a report of skipped rows.
    Any process may call it; processes that encode the same table at the same time publish the same result.
    Raises: UserError that lists the bad rows if on_bad_row is "error".
    """
    fingerprint = table_fingerprint(table)
    folder = publish(
        "examples",
        digest("examples", VERSION, fingerprint, key),
        lambda folder: _write(folder, table, function, cost, notify),
    )
    examples = EncodedExamples(folder, table.name)
    bad = BadRows(on_bad_row, examples.skipped, examples.skipped_count)
    bad.enforce_policy(table.name)
    if bad.count and notify is not None:
        notify(f"{table.name}: {bad.count:,} of {len(table):,} rows skipped\n{bad.summary()}")
    return examples


def table_fingerprint(table: Table) -> str:
    """The fingerprint of a table's content: its own if it has one, else a digest of all rows."""
    own = getattr(table, "fingerprint", None)
    return own if isinstance(own, str) else digest("rows", [dict(row) for row in table])


def _write(
    folder: Path,
    table: Table,
    function: EncodeRows,
    cost: Callable[[dict[str, Any]], int],
    notify: Callable[[str], None] | None,
) -> None:
    bad, notices, packer, total = BadRows(), Notices(), Packer(), len(table)
    progress = _Progress(table.name, total, notify)
    with RecordWriter(folder, tags=("ids", "costs")) as writer:
        for first, rows in _batches(table):
            for row_id, encoded in enumerate(function(rows), start=first):
                if isinstance(encoded, BadRow):
                    bad.add(table.place(row_id), str(encoded))
                else:
                    if KEY in encoded and (kinds := encoded.pop(KEY)):
                        notices.add(table.place(row_id), kinds)
                    writer.append(packer.pack(encoded), row_id, int(cost(encoded)))
            progress.update(first + len(rows))
    facts = {
        "layouts": packer.layouts,
        "skipped": bad.listed,
        "skipped_count": bad.count,
        "notices": notices.listed,
    }
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


class _Progress:
    """Reports the progress of encoding every few seconds."""

    def __init__(self, name: str, total: int, notify: Callable[[str], None] | None) -> None:
        self._name, self._total, self._notify = name, total, notify
        self._started = self._reported = time.monotonic()

    def update(self, done: int) -> None:
        now = time.monotonic()
        if self._notify is None or now - self._reported < PROGRESS_SECONDS:
            return
        self._reported = now
        left = (now - self._started) / done * (self._total - done)
        self._notify(f"{self._name}: {done:,} of {self._total:,} rows encoded, {format_seconds(left)} left")
