"""Rows that come in typed columns (parquet, Arrow, hub, built-in sets): memory-mapped Arrow files, read in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.bad_rows import BadRows
from finetune.data.columns import Required
from finetune.data.formats.lines import unreadable
from finetune.data.prepare.cache import digest, publish

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

BATCH_ROWS = 256  # of a converted parquet file: small enough for batches of photographs
UNLABELLED = -1  # how sets with named classes write that a row has no label


class ArrowRows:
    """Rows of memory-mapped Arrow files. Pickles as paths. A class index becomes the class's name.

    name: what places are told with. index: the rows that are whole, or None for all; bad: the others.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        name: str,
        mapping: Mapping[str, str],
        required: Required,
        limit: int | None,
        fingerprint: str,
    ) -> None:
        self._arguments = (tuple(paths), name, dict(mapping), required, limit, fingerprint)
        self._name = name
        self.fingerprint = digest("arrow", fingerprint, dict(mapping), required, limit)
        table = map_arrow(paths)
        named = class_columns(table.schema)
        self._columns = {role: (table.column(column), named.get(column)) for role, column in mapping.items()}
        for column in table.column_names:
            if column not in self._columns and column not in mapping.values():
                self._columns[column] = (table.column(column), named.get(column))
        self.classes: Mapping[str, Sequence[str]] = {role: names for role, (_, names) in self._columns.items() if names}
        self.bad = BadRows("skip")
        self._index = self._whole_rows(table.num_rows, mapping, required, limit)
        self._length = table.num_rows if self._index is None else len(self._index)
        if limit is not None:
            self._length = min(self._length, limit)

    def _whole_rows(
        self, count: int, mapping: Mapping[str, str], required: Required, limit: int | None
    ) -> np.ndarray | None:
        """Ids of the rows that have every required role, if some have not."""
        import numpy as np

        whole = np.ones(count, bool)
        for roles in required:
            has = np.zeros(count, bool)
            for role in roles:
                if role in self._columns:
                    has |= self._present(role)
            columns = " or ".join(mapping.get(role, role) for role in roles)
            for row in np.flatnonzero(~has & whole):
                self.bad.add(f"{self._name} row {row}", f"no value in column {columns}")
            whole &= has
        if whole.all():
            return None
        return np.flatnonzero(whole)[:limit]

    def _present(self, role: str) -> np.ndarray:
        import pyarrow as pa
        import pyarrow.compute as pc

        column, names = self._columns[role]
        present = pc.is_valid(column)
        if names and pa.types.is_integer(column.type):
            present = pc.and_(present, pc.fill_null(pc.not_equal(column, UNLABELLED), False))
        return present.to_numpy()

    def __len__(self) -> int:
        return self._length

    def _row(self, index: int) -> int:
        return index if self._index is None else int(self._index[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._row(index)
        found = {}
        for role, (column, names) in self._columns.items():
            value = column[row].as_py()
            if value is not None:
                found[role] = named_value(value, names) if names else value
        return found

    def values(self, role: str) -> Iterator[Any]:
        if role not in self._columns:
            yield from (None for _ in range(len(self)))
            return
        column, names = self._columns[role]
        for index in range(len(self)):
            value = column[self._row(index)].as_py()
            yield named_value(value, names) if names else value

    def place(self, index: int) -> str:
        return f"{self._name} row {self._row(index)}"

    def __reduce__(self) -> tuple[type[ArrowRows], tuple[Any, ...]]:
        return ArrowRows, self._arguments


def named_value(value: Any, names: Sequence[str]) -> Any:
    """The name of a class index, or of each in a list; what is no index stays as it is."""
    if isinstance(value, list):
        return [named_value(item, names) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def class_columns(schema: pa.Schema) -> dict[str, list[str]]:
    """{column: class names}, as `datasets` leaves them in a schema's metadata (also in its parquet files)."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    found = {}
    for column, feature in described.items():
        while isinstance(feature, dict) and "feature" in feature:  # a list of classes
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, dict) else None
        if names:
            found[column] = [str(name) for name in names]
    return found


def map_arrow(paths: Sequence[Path]) -> pa.Table:
    """Arrow IPC files or streams as one table whose columns lie in the page cache, not in this process.

    Raises: UserError for a file that is neither.
    """
    import pyarrow as pa

    tables = []
    for path in paths:
        try:
            source = pa.memory_map(str(path), "r")
            try:
                tables.append(pa.ipc.open_file(source).read_all())
            except pa.ArrowInvalid:
                source.seek(0)
                tables.append(pa.ipc.open_stream(source).read_all())
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error) from error
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)


def write_arrow(folder: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """`rows.arrow` in a folder, batch by batch."""
    import pyarrow as pa

    with (folder / "rows.arrow").open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def parquet_schema(path: Path) -> tuple[pa.Schema, int]:
    """(schema, rows) from the footer. Raises: UserError for what is no parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def unpack_parquet(path: Path) -> Path:
    """The Arrow file with a parquet file's rows, in the cache; parquet itself has no row to point at."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, _ = parquet_schema(path)
    stat = path.stat()
    key = digest("parquet", str(path.resolve()), stat.st_size, stat.st_mtime_ns)

    def write(folder: Path) -> None:
        with pq.ParquetFile(path) as file:
            write_arrow(folder, schema, _readable(path, file.iter_batches(BATCH_ROWS), pa.ArrowException))

    return publish("tables", key, write) / "rows.arrow"


def _readable(path: Path, batches: Iterator[pa.RecordBatch], broken: type[Exception]) -> Iterator[pa.RecordBatch]:
    """The batches; a damaged page of the file, not of the cache, is told as such."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (OSError, broken) as error:
            raise unreadable(path, error) from error
        yield batch


def keep_table(kind: str, key: str, make: Callable[[], pa.Table]) -> Path:
    """The Arrow file of a table that is made once, in the cache."""

    def write(folder: Path) -> None:
        table = make()
        write_arrow(folder, table.schema, table.to_batches(max_chunksize=BATCH_ROWS))

    return publish("tables", digest(kind, key), write) / "rows.arrow"


def file_fingerprint(paths: Sequence[Path]) -> str:
    """Names files by path, size and time."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return digest("files", stats)
