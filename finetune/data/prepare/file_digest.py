"""Digests of files by their content, remembered as long as size, modification time, change time and inode stay the same.

The one definition of what a file is, for cache keys, resuming and evaluations: a file that is moved or touched is the same
file; one whose content changes is another, even if its size and modification time do not.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from io import BufferedReader
from pathlib import Path
from typing import Any

from finetune import __version__
from finetune.data.prepare.cache import cache_folder, digest

FOLDER = "digests"
SETTLED_SECONDS = 0.1  # a file modified later than that may be modified again without a new time
# Packages whose version may change what rows become.
SHAPING_PACKAGES = (
    "tokenizers",
    "transformers",
    "jinja2",
    "pillow",
    "pyarrow",
    "datasets",
    "numpy",
    "sentencepiece",
    "tiktoken",
)

ROW_CODE = ("data", "recipe/roles.py")  # our own code that shapes rows before any task sees them

Stat = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode

_packages: dict[str, str] = {}
_sources: dict[tuple[str, ...], str] = {}


def file_stat(path: Path) -> Stat:
    """(size, mtime_ns, ctime_ns, inode) of a file that was not modified just now; waits a tenth of a second if it was.

    Raises: OSError.
    """
    found = path.stat()
    age = time.time() - max(found.st_mtime, found.st_ctime)
    if 0 <= age < SETTLED_SECONDS:
        time.sleep(SETTLED_SECONDS - age)
        found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def file_digest(path: Path) -> str:
    """Digest of a file's content, 32 hex digits. The content is read only if it may have changed since the last time.

    Raises: OSError.
    """
    before = file_stat(path)
    memory = cache_folder() / FOLDER / f"{digest(os.fspath(path.resolve()))}.json"
    try:
        remembered = json.loads(memory.read_text("utf-8"))
        if tuple(remembered["stat"]) == before:
            return str(remembered["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not remembered
    found = read_digest(path)
    if file_stat(path) == before:  # otherwise it changed while it was read
        _remember(memory, {"path": os.fspath(path.resolve()), "stat": before, "digest": found})
    return found


def contents_digest(paths: Sequence[Path]) -> str:
    """Digest of the contents of several files in order. Raises: OSError."""
    return digest("files", [file_digest(path) for path in paths])


def folder_digest(folder: Path, *, without: Sequence[str] = ()) -> str:
    """Digest of a small folder: names and contents of its files, except those in the subfolders `without`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [(path.relative_to(folder), path) for path in files]
    return digest(
        "folder", [(name.as_posix(), read_digest(path)) for name, path in named if name.parts[0] not in without]
    )


def package_versions() -> dict[str, str]:
    """Versions of finetune and of the packages that shape tokens and pixels, read without importing them."""
    if not _packages:
        _packages.update(finetune=__version__, python=".".join(map(str, sys.version_info[:2])))  # its Unicode tables
        for name in SHAPING_PACKAGES:
            try:
                _packages[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                _packages[name] = ""
    return dict(_packages)


def source_digest(*rooms: str) -> str:
    """Digest of our own source code in some folders or files of the package, such as "tasks": what they make may change
    with it.

    So nobody has to remember a version number when changing how rows are encoded.
    """
    if rooms not in _sources:
        root = Path(__file__).resolve().parents[2]
        folders = [root / room for room in rooms]
        files = sorted(path for room in folders for path in (room.rglob("*.py") if room.is_dir() else [room]))
        content = hashlib.blake2b(digest_size=16)
        for path in files:
            content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
        _sources[rooms] = content.hexdigest()
    return _sources[rooms]


def open_regular(path: str | Path) -> BufferedReader:
    """A file for reading. Raises: OSError, also for a pipe, which would be waited for, and a device, which has no end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return os.fdopen(handle, "rb")


def read_digest(path: Path) -> str:
    """Digest of a file's content, which is read. Raises: OSError, also for a pipe or a device."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _remember(memory: Path, value: Any) -> None:
    """Another process may write the same at the same time."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        beside = memory.with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(json.dumps(value), "utf-8")
        beside.replace(memory)
    except OSError:  # a read-only or full disk: it is read again next time
        return
