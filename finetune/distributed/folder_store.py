"""A store that outlives the processes that use it: texts under names and growing lists, in a folder of one machine.

torch's FileStore is a log that each process writes in pieces: one that is killed in between leaves half an entry, which ends
all others. Here a text is a file that appears under its name as a whole, and an entry of a list is a line of fixed length,
written by one call under a lock that the kernel releases when its holder dies. Nothing listens, and no torch is needed.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

LINE = 32  # bytes of an entry, with the newline


class FolderStore:
    """A process's way to the folder. Any thread may use it; it opens nothing before its first use, as the process may fork."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._lists: dict[str, int] = {}  # name -> descriptor

    def announce(self, name: str, text: str) -> None:
        """Let every process read `text` under a name; it takes the place of an earlier one."""
        path = self._path(name)
        beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)

    def announced(self, name: str) -> str | None:
        """What was announced under a name; None if nothing was."""
        try:
            return self._path(name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def append(self, name: str, text: str, *, below: int | None = None) -> int | None:
        """The index of a new entry of a list. None, and no entry, if the list has `below` entries already.

        text: of at most LINE - 1 ASCII characters.
        """
        line = text.encode("ascii").ljust(LINE - 1) + b"\n"
        assert len(line) == LINE, f"{text!r} is too long for an entry"
        with self._lock:
            handle = self._open(name)
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                index = os.fstat(handle).st_size // LINE
                if below is not None and index >= below:
                    return None
                os.pwrite(handle, line, index * LINE)
                return index
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)

    def entries(self, name: str, start: int = 0) -> list[str]:
        """Those of a list from index `start` on."""
        with self._lock:
            handle = self._open(name)
            count = os.fstat(handle).st_size // LINE - start
            data = os.pread(handle, count * LINE, start * LINE) if count > 0 else b""
        whole = len(data) // LINE * LINE
        return [data[first : first + LINE].decode("ascii").rstrip() for first in range(0, whole, LINE)]

    def _path(self, name: str) -> Path:
        return self._folder / name.replace("/", ".")

    def _open(self, name: str) -> int:
        if name not in self._lists:
            self._lists[name] = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._lists[name]

    def __del__(self) -> None:
        for handle in self._lists.values():
            os.close(handle)
