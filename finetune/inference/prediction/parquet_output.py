"""An output in Parquet. A Parquet file ends with its table of contents, so it cannot grow: each window is a file of its own
in <output>.parts/, and they are put together at the end, a few of them in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.errors import UserError
from finetune.inference.prediction.jsonl_output import changed_output
from finetune.inference.prediction.parts import Parts
from finetune.inference.prediction.record_columns import Record, RecordColumns, as_text
from finetune.inference.recording import ROW
from finetune.tasks.records import Fields

GROUP_ROWS = 65_536  # of a row group; windows are put together up to here
GROUP_BYTES = 256 << 20
_TYPES = {"text": pa.string(), "json": pa.string(), "number": pa.float64(), "integer": pa.int64(), "truth": pa.bool_()}


class ParquetOutput:
    """See outputs.Output. A position is the number of windows written."""

    def __init__(self, path: Path, columns: RecordColumns) -> None:
        self.path, self.columns = path, columns
        self.folder = Parts(path).rows
        self.schema = arrow_schema(columns.columns)
        self._count = 0

    def resume(self, position: Any) -> None:
        """See Output."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if position is not None and not isinstance(position, int):
            where = str(Parts(self.path).state)
            raise UserError("position is no number of windows", where=where, remedy="Remove its folder.")
        self._count = position or 0
        if not self._count:
            self.path.unlink(missing_ok=True)
        known = {self._part(number).name for number in range(self._count)}
        for path in self.folder.iterdir():
            if path.name not in known and not path.is_dir():
                path.unlink()
        if not self.path.exists():
            self._check_parts()

    def _check_parts(self) -> None:
        """Raises: UserError if the windows are not there, each with the rows that follow those of the one before."""
        row = 0
        for number in range(self._count):
            path = self._part(number)
            found = _row_range(path)
            if found is None or found[0] != row:
                raise changed_output(path, "is not the window that was written")
            row = found[1] + 1

    def check_finished(self, position: Any, rows: int) -> None:
        """See Output."""
        found = _row_range(self.path) if rows else None
        if rows and (found is None or found != (0, rows - 1)):
            raise changed_output(self.path, f"is not the file that was finished with {rows:,} rows")

    def append(self, records: Sequence[Record]) -> int:
        """See Output."""
        kinds = self.columns.columns
        rows = [self.columns.cells(record) for record in records]
        arrays = [
            pa.array([_value(row[name], kind) for row in rows], type=self.schema.field(name).type)
            for name, kind in kinds.items()
        ]
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        _publish(self._part(self._count), lambda file: pq.write_table(table, file, compression="zstd"))
        self._count += 1
        return self._count

    def finish(self) -> None:
        """Put the windows together; they are removed when the whole is there."""

        def write(file: Any) -> None:
            with pq.ParquetWriter(file, self.schema, compression="zstd") as writer:
                for group in self._groups():
                    writer.write_table(group, row_group_size=max(1, group.num_rows))

        if not self.path.exists():  # otherwise a crash came between this and the end
            _publish(self.path, write)
        for path in self.folder.iterdir():
            path.unlink()

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:08d}.parquet"

    def _groups(self) -> Iterator[pa.Table]:
        """The windows, several together where they are small."""
        tables = (pq.read_table(self._part(number), use_threads=False) for number in range(self._count))
        held: list[pa.Table] = []
        for table in tables:
            held.append(table)
            if sum(map(len, held)) >= GROUP_ROWS or sum(one.nbytes for one in held) >= GROUP_BYTES:
                yield pa.concat_tables(held)
                held = []
        if held:
            yield pa.concat_tables(held)


def _row_range(path: Path) -> tuple[int, int] | None:
    """(first row, last row) of a file whose rows are complete; None for another file."""
    try:
        with pq.ParquetFile(path) as file:
            about, place = file.metadata, file.schema_arrow.get_field_index(ROW)
            groups = [about.row_group(number).column(place).statistics for number in range(about.num_row_groups)]
            first, last = int(groups[0].min), int(groups[-1].max)
            return (first, last) if about.num_rows == last - first + 1 else None
    except (OSError, pa.ArrowException, AttributeError, IndexError, TypeError, ValueError):
        return None


def arrow_schema(fields: Fields) -> pa.Schema:
    """The columns of a table; every value may be null."""
    return pa.schema([pa.field(name, _type(kind)) for name, kind in fields.items()])


def _type(kind: Any) -> pa.DataType:
    if isinstance(kind, list):
        return pa.list_(_type(kind[0]))
    if isinstance(kind, Mapping):
        return pa.struct([pa.field(name, _type(inner)) for name, inner in kind.items()])
    return _TYPES[kind]


def _value(value: Any, kind: Any) -> Any:
    """A value as pyarrow takes it for its column: JSON text where the type is not known, and no half of a character."""
    if value is None:
        return None
    if isinstance(kind, list):
        return [_value(item, kind[0]) for item in value]
    if isinstance(kind, Mapping):
        return {name: _value(value.get(name), inner) for name, inner in kind.items()}
    if kind in ("text", "json"):
        return (as_text(value) or "").encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def _publish(path: Path, write: Any) -> None:
    """A file that is whole, on the disk, and renamed. Raises: OSError; then nothing of it stays."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
