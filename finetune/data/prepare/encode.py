"""Encodes the rows of a split into examples, once; the result is memory-mapped from the cache by all ranks and runs."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRow, BadRows, Listed
from finetune.data.prepare.cache import digest, publish
from finetune.data.prepare.chunk_writer import ChunkRecords, ChunkWriter, replace_layouts
from finetune.data.prepare.file_digest import package_versions, source_digest
from finetune.data.prepare.memory import limited_memory, worker_bytes
from finetune.data.prepare.notices import KEY, Notices
from finetune.data.prepare.pool import Chunk, map_chunks
from finetune.data.prepare.progress import Meter, current_stage
from finetune.data.prepare.record_codec import Layout, Packer, unpack
from finetune.data.prepare.records import RecordFile
from finetune.data.table import Row, Table, describe_table, read_rows

if TYPE_CHECKING:
    import numpy as np

VERSION = 1  # of the layout on disk
ROWS = 256  # encoded together
POOL_ROWS = 2_000  # from so many rows on, worker processes encode
POOL_SECONDS = 3.0  # and fewer rows, if they would take longer than that

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

    def report(self) -> list[str]:
        """What is to be reported of the rows before the first step: those left out, and what was changed in others."""
        bad = BadRows("skip", self.skipped, self.skipped_count)
        rows = "1 row is" if bad.count == 1 else f"{bad.count:,} rows are"
        lines = [f"{rows} skipped, {len(self):,} kept\n{bad.summary()}"] if bad.count else []
        return [f"{self.name}: {line}" for line in (*lines, *self.notices.lines())]

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

    Inside the stage of preparation (progress.py) many rows are encoded by its workers; the result is the same. An
    encoding that is interrupted continues where it was.

    function: rows -> for each of them {name: integer, list of integers, array, or any JSON value}, or a BadRow. The
    sentences under "notices" are not stored with the example but counted (`EncodedExamples.notices`).
    key: identifies everything that `function` and `cost` depend on: tokenizer hash, options, lengths, label names. Versions
    of libraries, and our own code, are added here.
    on_bad_row: "error" or "skip". cost: encoded example -> its cost (tokens, pixels).
    notify: is called with a report of skipped rows, and if another process encodes the same.
    Any process may call it; of several at the same time, one encodes.
    Raises: UserError that lists the bad rows if on_bad_row is "error".
    """
    folder = publish(
        "examples",
        digest("examples", VERSION, table_fingerprint(table), key, package_versions(), source_digest("data", "tasks")),
        lambda folder: _write(folder, EncodeJob(table, function, cost)),
        about=describe_table(table),
        notify=notify,
        resumable=True,
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


class EncodeJob:
    """Encodes chunks of a table's rows; see pool.DivisibleJob."""

    def __init__(self, table: Table, function: EncodeRows, cost: Callable[[dict[str, Any]], int]) -> None:
        self.table, self.function, self.cost = table, function, cost

    def run(self, chunk: Chunk) -> ChunkRecords:
        """The records of rows [first, last), with "ids" and "costs" as their numbers."""
        ids = range(*chunk)
        rows = read_rows(self.table, *chunk)
        packer, records = Packer(), []
        sizes, row_ids, costs = array("q"), array("q"), array("q")
        bad: list[Listed] = []
        notices = Notices()
        for row_id, encoded in zip(ids, self._encode(rows), strict=True):
            if isinstance(encoded, BadRow):
                bad.append((self.table.place(row_id), str(encoded)))
                continue
            if KEY in encoded and (kinds := encoded.pop(KEY)):
                notices.add(self.table.place(row_id), kinds)
            record = packer.pack(encoded)
            records.append(record)
            sizes.append(len(record))
            row_ids.append(row_id)
            costs.append(int(self.cost(encoded)))
        return ChunkRecords(b"".join(records), sizes, (row_ids, costs), packer.layouts, bad, notices)

    def _encode(self, rows: Sequence[Row]) -> Sequence[dict[str, Any] | BadRow]:
        """Together; where that needs too much memory, one by one, so that a row that needs it all is a bad one."""
        try:
            return self.function(rows)
        except MemoryError:
            return [self._encode_alone(row) for row in rows]

    def _encode_alone(self, row: Row) -> dict[str, Any] | BadRow:
        try:
            (encoded,) = self.function([row])
            return encoded
        except MemoryError:
            return BadRow("encoding it needs more memory than there is")

    def describe(self, chunk: Chunk) -> str:
        """Where the rows are: "train.jsonl:257 to train.jsonl:512"."""
        first, last = self.table.place(chunk[0]), self.table.place(chunk[1] - 1)
        return first if first == last else f"{first} to {last}"

    def lost(self, chunk: Chunk, why: str) -> ChunkRecords:
        """A row that ends every worker is a bad one."""
        return ChunkRecords(b"", array("q"), (array("q"), array("q")), (), [(self.table.place(chunk[0]), why)])

    def join(self, results: Sequence[ChunkRecords]) -> ChunkRecords:
        """The results of single rows as one."""
        packer_layouts: list[Layout] = []
        joined = ChunkRecords(b"", array("q"), (array("q"), array("q")), packer_layouts, [])
        data: list[bytes] = []
        bad: list[Listed] = []
        for one in results:
            for layout in one.layouts:
                if layout not in packer_layouts:
                    packer_layouts.append(layout)
            indices = [packer_layouts.index(layout) for layout in one.layouts]
            data.append(replace_layouts(one.data, one.sizes, indices))
            joined.sizes.extend(one.sizes)
            for column, more in zip(joined.numbers, one.numbers, strict=True):
                column.extend(more)
            bad += one.bad
            joined.notices.extend(one.notices)
        joined.data, joined.bad = b"".join(data), bad
        return joined


def _write(folder: Path, job: EncodeJob) -> None:
    total, stage = len(job.table), current_stage()
    with ChunkWriter(folder, tags=("ids", "costs")) as writer:
        meter = Meter(job.table.name, total, doing="encoding", done=writer.next_unit)
        chunks = [(first, min(first + ROWS, total)) for first in range(writer.next_unit, total, ROWS)]
        with limited_memory(worker_bytes(1)):
            for chunk, records in _results(job, chunks, stage.workers):
                writer.append(records, chunk[1])
                meter.update(chunk[1])
        meter.close()
        facts = {
            "layouts": writer.layouts,
            "skipped": writer.bad.listed,
            "skipped_count": writer.bad.count,
            "notices": writer.notices.listed,
        }
        (folder / "facts.json").write_text(json.dumps(facts), "utf-8")
        writer.finish()


def _results(job: EncodeJob, chunks: Sequence[Chunk], workers: int) -> Iterator[tuple[Chunk, ChunkRecords]]:
    """By the pool where that is worth its start: for many rows, or for rows that turn out to take long."""
    first = 0
    if len(chunks) * ROWS < POOL_ROWS:
        started = time.monotonic()
        for first, chunk in enumerate(chunks, start=1):
            yield chunk, job.run(chunk)
            if (time.monotonic() - started) / first * (len(chunks) - first) > POOL_SECONDS:
                break
    yield from map_chunks(job, chunks[first:], workers=workers)
