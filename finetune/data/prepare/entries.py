"""What is in the cache: its entries, with what they were made from, their size and last use; and their removal."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from finetune.data.prepare.cache import cache_folder, read_about
from finetune.data.prepare.cache_removal import is_partial, remove_entry


@dataclass(frozen=True)
class Entry:
    """kind: rows, tables, splits, examples, prepared, ... about: what it was made from. used: seconds since its last use."""

    path: Path
    kind: str
    about: str
    size_bytes: int
    unused_seconds: float
    partial: bool


def list_entries() -> list[Entry]:
    """All entries of the cache, by kind, the one that was used last first."""
    root, found = cache_folder(), []
    for path in root.glob("*/*") if root.is_dir() else ():
        if path.is_dir():
            try:
                found.append(_entry(path))
            except FileNotFoundError:  # removed meanwhile
                continue
    return sorted(found, key=lambda entry: (entry.kind, entry.unused_seconds))


def prune_entries(older_than_days: float) -> tuple[list[Entry], list[Entry]]:
    """Remove the entries that were not used for so many days. (removed, kept because a process uses them)."""
    removed: list[Entry] = []
    in_use: list[Entry] = []
    for entry in list_entries():
        if entry.unused_seconds >= older_than_days * 86_400:
            (removed if remove_entry(entry.path) else in_use).append(entry)
    return removed, in_use


def _entry(path: Path) -> Entry:
    stat = path.stat()
    size = sum(file.lstat().st_size for file in _files(path))
    return Entry(
        path, path.parent.name, read_about(path), size, max(0.0, time.time() - stat.st_mtime), is_partial(path.name)
    )


def _files(folder: Path) -> list[Path]:
    return [Path(home) / name for home, _, names in os.walk(folder) for name in names]
