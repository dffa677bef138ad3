"""Record batches of typed files from a row on, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.formats.compression import unreadable
from finetune.data.sources.arrow_files import map_arrow
from finetune.data.sources.located import display_path
from finetune.errors import UserError

BATCH_ROWS = 256


def arrow_batches(paths: Sequence[Path], first: int) -> Iterator[pa.RecordBatch]:
    """Those of memory-mapped Arrow files."""
    return iter(map_arrow(paths).slice(first).to_batches())


def parquet_batches(path: Path, count: int, first: int) -> Iterator[pa.RecordBatch]:
    """Those of a Parquet file from row `first` on; row groups before it are not read. count: rows when it was opened.

    Raises: UserError if the file cannot be read, or is another one by now.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if file.metadata.num_rows != count:
                raise UserError(
                    f"the file changed while it was read, from {count:,} to {file.metadata.num_rows:,} rows",
                    where=display_path(path),
                    remedy="Give a file that nothing writes to any more.",
                )
            groups = list(range(file.metadata.num_row_groups))
            while groups and file.metadata.row_group(groups[0]).num_rows <= first:
                first -= file.metadata.row_group(groups.pop(0)).num_rows
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, use_threads=False):
                batch.validate(full=True)  # texts of others may hold bytes that are no text
                if first >= batch.num_rows:
                    first -= batch.num_rows
                    continue
                yield batch.slice(first)
                first = 0
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
