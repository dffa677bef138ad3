"""Arrow and Parquet files as memory-mapped tables: opened, checked, and converted into files of the cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.data.formats.compression import unreadable
from finetune.data.prepare.cache import digest, publish
from finetune.data.prepare.file_digest import contents_digest, file_digest
from finetune.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


BATCH_ROWS = 256  # rows per record batch when converting; small enough for batches of photographs


def map_arrow(paths: Sequence[Path]) -> pa.Table:
    """Memory-map Arrow IPC files or streams as one table; its columns stay in the page cache of the system.

    Raises: UserError for a file that is neither an IPC file nor a stream.
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
        check_names(tables[-1].schema, path)
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)


def check_arrow(path: Path) -> None:
    """Check every offset, length and text of an Arrow file that others wrote, once per content: reading values behind a
    wrong offset would end the process, or show memory that is none of the file's.

    Raises: UserError for a damaged file.
    """
    import pyarrow as pa

    def write(folder: Path) -> None:
        try:
            map_arrow([path]).validate(full=True)
        except pa.ArrowException as error:
            raise unreadable(path, error) from error

    publish("checked", digest("arrow", file_digest(path)), write, about=f"checked: {path}")


def write_arrow(folder: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write record batches to `rows.arrow` in a folder."""
    import pyarrow as pa

    with (folder / "rows.arrow").open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def parquet_schema(path: Path) -> tuple[pa.Schema, int]:
    """(schema, number of rows) from the footer of a Parquet file. Raises: UserError if it is not a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    check_names(schema, path)
    return schema, count


def check_names(schema: pa.Schema | pa.DataType, path: Path, inside: str = "") -> None:
    """Raises: UserError if two columns, or two fields of a struct, have the same name: one of them would be meant."""
    import pyarrow as pa

    fields = [
        schema.field(index) for index in range(len(schema) if isinstance(schema, pa.Schema) else schema.num_fields)
    ]
    if isinstance(schema, pa.Schema) or pa.types.is_struct(schema):
        names = Counter(field.name for field in fields)
        twice = next((name for name, count in names.items() if count > 1), None)
        if twice is not None:
            raise UserError(
                f"two {f'fields of {inside}' if inside else 'columns'} are named {twice!r}",
                where=str(path),
                remedy="Rename one of them.",
            )
    for field in fields:
        if field.type.num_fields:
            check_names(field.type, path, field.name)


def parquet_to_arrow(path: Path) -> Path:
    """The path of an Arrow file in the cache with the rows of a Parquet file, which has no random access to rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, _ = parquet_schema(path)
    key = digest("parquet", file_digest(path))

    def write(folder: Path) -> None:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            batches = file.iter_batches(BATCH_ROWS, use_threads=False)
            write_arrow(folder, schema, _readable(path, batches, pa.ArrowException))

    return publish("tables", key, write, about=str(path)) / "rows.arrow"


def _readable(path: Path, batches: Iterator[pa.RecordBatch], broken: type[Exception]) -> Iterator[pa.RecordBatch]:
    """The batches, with read errors reported as errors of the source file at `path`, not of the cache."""
    while True:
        try:
            batch = next(batches)
            batch.validate(full=True)  # texts of others may hold bytes that are no text
        except StopIteration:
            return
        except (OSError, broken) as error:
            raise unreadable(path, error) from error
        yield batch


def cache_table(kind: str, key: str, make: Callable[[], pa.Table]) -> Path:
    """The Arrow file in the cache with the table that `make` returns. `make` is called if the entry does not exist."""

    def write(folder: Path) -> None:
        table = make()
        write_arrow(folder, table.schema, table.to_batches(max_chunksize=BATCH_ROWS))

    return publish("tables", digest(kind, key), write, about=f"{kind}: {key}") / "rows.arrow"


def file_fingerprint(paths: Sequence[Path]) -> str:
    """Fingerprint of files: their contents."""
    return digest("files", contents_digest(paths))
