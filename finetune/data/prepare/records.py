"""A file of byte records, read by random access through a memory map: what chunk_writer.py writes."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SMALL_BYTES = 4_096  # a file of one page is read rather than mapped


@cache
def allow_open_files() -> None:
    """Let this process open as many files as the system permits: 1,024, the usual limit, are few for folders of parts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class RecordFile:
    """Records in `folder/<name>.bin`, their ends in `<name>.ends`, and one int64 per record and tag in `<name>.<tag>`.

    Records are bytes rather than typed Arrow columns, because Arrow would reject rows that hold 1 and "1" in the same
    column, or a key that first occurs in row 90,000. Pickles as its path, so data loader workers share the mapped pages.
    """

    def __init__(self, folder: Path, name: str = "rows") -> None:
        self._folder, self._name = folder, name
        self._bytes = self._map("bin", "u1")
        self._ends = self._map("ends", "<i8")

    def _map(self, tag: str, dtype: str) -> np.ndarray:
        import numpy as np

        path = self._folder / f"{self._name}.{tag}"
        if path.stat().st_size <= SMALL_BYTES:  # an empty file cannot be mapped, and each map keeps a file open
            return np.fromfile(path, dtype)
        allow_open_files()
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)  # indexing a plain array is faster

    def numbers(self, tag: str) -> np.ndarray:
        """The numbers of a tag, int64 [records]."""
        return self._map(tag, "<i8")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> np.ndarray:
        """Record `index` as uint8 [bytes], read-only."""
        return self._bytes[int(self._ends[index - 1]) if index else 0 : int(self._ends[index])]

    def between(self, first: int, last: int) -> list[bytes]:
        """Records [first, last), read from the file in one piece: reading all of them in turn keeps no memory mapped."""
        start = int(self._ends[first - 1]) if first else 0
        ends = (self._ends[first:last] - start).tolist()
        if not ends:
            return []
        with (self._folder / f"{self._name}.bin").open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), ends[-1], start)
        if len(data) < ends[-1]:  # one read gives at most 2 GiB
            return [self[index].tobytes() for index in range(first, last)]
        return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def __reduce__(self) -> tuple[type[RecordFile], tuple[Path, str]]:
        return RecordFile, (self._folder, self._name)
