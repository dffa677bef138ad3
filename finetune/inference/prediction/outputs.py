"""The file of answers while it grows: JSON lines, CSV or Parquet, by the extension of its name.

    .jsonl    one object per line; "error" is an object; what a row lacks is left out
    .csv      a header; lists and objects as JSON text; error_kind and error_message are columns
    .parquet  typed columns, lists and structs; error_kind and error_message are columns

Each grows window by window, and goes on behind the last window that is known to be written.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.data.formats.delimited import MAX_CELL_CHARS
from finetune.inference.prediction.collector import Output
from finetune.inference.prediction.jsonl_output import GrowingFile, JsonLinesOutput
from finetune.inference.prediction.output_name import check_output_name
from finetune.inference.prediction.record_columns import Record, RecordColumns
from finetune.tasks.records import Fields

READ_ROWS = 256


def open_output(path: Path, columns: RecordColumns) -> Output:
    """The output that the extension of `path` says. Nothing is written yet. Raises: UserError for another extension."""
    check_output_name(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from finetune.inference.prediction.parquet_output import ParquetOutput

        return ParquetOutput(path, columns)
    return CsvOutput(path, columns) if suffix == ".csv" else JsonLinesOutput(path)


class CsvOutput(GrowingFile):
    """A line of cells per record (RFC 4180, ended by a newline), below a header."""

    def __init__(self, path: Path, columns: RecordColumns) -> None:
        super().__init__(path)
        self.columns = columns

    def resume(self, position: Any) -> None:
        """See Output. The header is there even if no record ever is."""
        super().resume(position)
        if position is None:
            self._write(_csv_line(list(self.columns.columns)))

    @property
    def size_when_empty(self) -> int:  # type: ignore[override]
        """Of the header alone."""
        return len(_csv_line(list(self.columns.columns)))

    def append(self, records: Sequence[Record]) -> dict[str, Any]:
        """See Output."""
        kinds = self.columns.columns
        rows = (self.columns.cells(record) for record in records)
        return self._write(b"".join(_csv_line([_cell(row[name]) for name in kinds]) for row in rows))


def read_records(path: Path, fields: Fields) -> Iterator[dict[str, Any]]:
    """The records of a finished output, in order, one after the other; lists and objects of CSV from their JSON."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(READ_ROWS, use_threads=False):
                yield from batch.to_pylist()
        return
    with path.open(encoding="utf-8", newline="") as text:
        if suffix == ".csv":
            csv.field_size_limit(MAX_CELL_CHARS)
            for row in csv.DictReader(text, strict=True):
                yield {name: _from_cell(cell, fields.get(name)) for name, cell in row.items()}
        else:
            yield from (json.loads(line) for line in text)


def _from_cell(cell: str, kind: Any) -> Any:
    if kind is None or kind == "text":
        return cell
    return json.loads(cell) if cell else None


def _csv_line(cells: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
