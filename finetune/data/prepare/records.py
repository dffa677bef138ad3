"""A file of byte records, written sequentially and read by random access through a memory map."""

from __future__ import annotations

import os
import resource
from array import array
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SMALL_BYTES = 4_096  # a file of one page is read rather than mapped
BUFFER_BYTES = 1 << 20  # records are written in blocks of about this size


@cache
def allow_open_files() -> None:
    """Let this process open as many files as the system permits: 1,024, the usual limit, are few for folders of parts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class RecordWriter:
    """Writes records to `folder/<name>.bin`, their ends to `<name>.ends`, and one int64 per tag to `<name>.<tag>`.

    Records are bytes rather than typed Arrow columns, because Arrow would reject rows that hold 1 and "1" in the same
    column, or a key that first occurs in row 90,000. Use it as a context manager.
    """

    def __init__(self, folder: Path, name: str = "rows", tags: tuple[str, ...] = ()) -> None:
        self._paths = [folder / f"{name}.bin", *(folder / f"{name}.{tag}" for tag in ("ends", *tags))]
        self._records: list[bytes] = []
        self._pending = 0
        self._end = 0
        self._numbers = [array("q") for _ in self._paths[1:]]
        self.count = 0

    def __enter__(self) -> RecordWriter:
        self._files = [path.open("wb", buffering=0) for path in self._paths]
        return self

    def append(self, record: bytes, *numbers: int) -> None:
        """Append a record and its number for each tag, in the order of `tags`."""
        self._records.append(record)
        self._pending += len(record)
        self._end += len(record)
        self._numbers[0].append(self._end)
        for column, number in zip(self._numbers[1:], numbers, strict=True):
            column.append(number)
        self.count += 1
        if self._pending >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        for file, data in zip(
            self._files, (b"".join(self._records), *(column.tobytes() for column in self._numbers)), strict=True
        ):
            view = memoryview(data)
            while view:  # an unbuffered write may be partial
                view = view[file.write(view) :]
        self._records.clear()
        self._pending = 0
        for column in self._numbers:
            del column[:]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            for file in self._files:
                file.close()


class RecordFile:
    """Reads the records that RecordWriter wrote. Pickles as its path, so data loader workers share the mapped pages."""

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
