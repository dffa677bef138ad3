"""Writes the results of chunks one after the other, so that whoever is killed can continue where it was.

The files are those that a `RecordFile` reads, and grow by appending. Every second, a line in `journal.jsonl` says how far
they go: which rows are done, and the end and the checksum of each file. Whoever continues cuts the files off there. So an
entry that was interrupted is the same, byte for byte, as one that was not. Nothing waits for the disk: after a power
failure, the checksums tell whether what is there can be used.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from finetune.data.bad_rows import BadRows, Listed
from finetune.data.prepare.notices import Notices
from finetune.data.prepare.record_codec import Layout

JOURNAL = "journal.jsonl"
COMMIT_SECONDS = 1.0
NUMBER_BYTES = 8
READ_BYTES = 1 << 20


@dataclass
class ChunkRecords:
    """What becomes of one chunk of rows: its records, and numbers that belong to each.

    data: the records, one after the other. sizes: bytes of each. numbers: for each tag of the writer one per record.
    layouts: of the records, as Packer gives them; the records refer to them by their index in this chunk.
    bad: (place, reason) of bad rows. notices: what is to be reported of the others.
    """

    data: bytes = b""
    sizes: array[int] = field(default_factory=lambda: array("q"))
    numbers: Sequence[array[int]] = ()
    layouts: Sequence[Layout] = ()
    bad: Sequence[Listed] = ()
    notices: Notices = field(default_factory=Notices)


class ChunkWriter:
    """Appends chunks to `folder/<name>.bin`, `.ends` and a file per tag. Use it as a context manager.

    next_unit: the first unit (row, or byte of a file) that is not done yet: 0 in a new folder.
    layouts: of all records so far. bad: rows that were left out. notices: of the others.
    count: records so far.
    extra: any JSON value of the caller, given back as it was at `next_unit`.
    """

    def __init__(self, folder: Path, name: str = "rows", tags: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._paths = [folder / f"{name}.bin", *(folder / f"{name}.{tag}" for tag in ("ends", *tags))]
        self._begin()

    def _begin(self) -> None:
        """The state of a new folder."""
        self.next_unit, self.count, self.end = 0, 0, 0
        self.layouts: list[Layout] = []
        self.bad, self.notices = BadRows("skip"), Notices()
        self.extra: Any = None
        self._stored_layouts, self._stored_bad = 0, 0
        self._checksums = [0] * len(self._paths)

    def __enter__(self) -> Self:
        good = self._read_journal(self._folder / JOURNAL)
        self._files = [_open(path) for path in self._paths]
        if good and not self._is_whole():
            self._begin()
            good = 0
        self._journal = _open(self._folder / JOURNAL)
        for file, end in zip((*self._files, self._journal), (*self._ends(), good), strict=True):
            file.truncate(end)
            file.seek(end)
        self._committed = time.monotonic()
        return self

    def _is_whole(self) -> bool:
        """Whether the files have what the journal says."""
        for file, end, checksum in zip(self._files, self._ends(), self._checksums, strict=True):
            found = 0
            while end and (data := file.read(min(end, READ_BYTES))):
                found, end = zlib.crc32(data, found), end - len(data)
            if end or found != checksum:
                return False
        return True

    def _ends(self) -> list[int]:
        return [self.end, *([NUMBER_BYTES * self.count] * (len(self._paths) - 1))]

    def _read_journal(self, path: Path) -> int:
        """Take over what the complete lines say; bytes of those lines."""
        if not path.exists():
            return 0
        good = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                if not line.endswith(b"\n"):
                    break
                state = json.loads(line)
                self.next_unit, self.count, self.end = state["next"], state["count"], state["end"]
                self._checksums = list(state["checksums"])
                self.layouts += [[(key, kind) for key, kind in layout] for layout in state["layouts"]]
                listed = [(place, reason) for place, reason in state["bad"]]
                self.bad = BadRows("skip", [*self.bad.listed, *listed], state["bad_count"])
                self.notices, self.extra = Notices(state["notices"]), state["extra"]
            except (ValueError, KeyError, TypeError):
                break
            good += len(line)
        self._stored_layouts, self._stored_bad = len(self.layouts), len(self.bad.listed)
        return good

    def append(self, chunk: ChunkRecords, next_unit: int, extra: Any = None) -> None:
        """Append the result of the next chunk. next_unit: the first unit behind the chunk."""
        import numpy as np

        ends = np.cumsum(np.asarray(chunk.sizes, np.int64))
        indices = [self._layout_index(layout) for layout in chunk.layouts]
        self._write(0, replace_layouts(chunk.data, chunk.sizes, indices))
        self._write(1, (ends + self.end).astype("<i8").tobytes())
        for position, column in enumerate(chunk.numbers, start=2):
            self._write(position, column.tobytes())
        self.end += len(chunk.data)
        self.count += len(chunk.sizes)
        for place, reason in chunk.bad:
            self.bad.add(place, reason)
        self.notices.extend(chunk.notices)
        self.next_unit, self.extra = next_unit, extra
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def _layout_index(self, layout: Layout) -> int:
        if layout not in self.layouts:
            self.layouts.append(layout)
        return self.layouts.index(layout)

    def _write(self, position: int, data: bytes) -> None:
        self._checksums[position] = zlib.crc32(data, self._checksums[position])
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        while view:  # an unbuffered write may be partial
            view = view[self._files[position].write(view) :]

    def commit(self) -> None:
        """Note in the journal how far the files go."""
        state = {
            "next": self.next_unit,
            "count": self.count,
            "end": self.end,
            "checksums": self._checksums,
            "layouts": self.layouts[self._stored_layouts :],
            "bad": self.bad.listed[self._stored_bad :],
            "bad_count": self.bad.count,
            "notices": self.notices.listed,
            "extra": self.extra,
        }
        self._journal.write(json.dumps(state).encode() + b"\n")
        self._stored_layouts, self._stored_bad = len(self.layouts), len(self.bad.listed)
        self._committed = time.monotonic()

    def finish(self) -> None:
        """All chunks are there: the journal is not needed any more. A large result is made durable."""
        if self.end > READ_BYTES:
            for file in self._files:
                os.fdatasync(file.fileno())
        (self._folder / JOURNAL).unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (*self._files, self._journal):
            file.close()


def _open(path: Path) -> FileIO:
    """For reading and writing, created if it does not exist."""
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")


def replace_layouts(data: bytes, sizes: Sequence[int], indices: Sequence[int]) -> bytes:
    """The records with layout `i` called `indices[i]`. A record begins with its layout, at a multiple of 8 bytes."""
    if list(indices) == list(range(len(indices))):
        return data
    import numpy as np

    words = np.frombuffer(data, "<i4").copy()
    starts = (np.cumsum(np.asarray(sizes, np.int64)) - np.asarray(sizes, np.int64)) // 4
    words[starts] = np.asarray(indices, np.int32)[words[starts]]
    return words.tobytes()
