"""Remove entries of the cache: old ones, damaged ones, and what crashed processes left. What a process uses stays."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from finetune.data.prepare.locks import release, take_from_use, try_lock

UNUSED_SECONDS = 30 * 86_400  # entries not opened for this long are removed
ABANDONED_SECONDS = 86_400  # incomplete entries of crashed processes are removed after this
PARTIAL_SECONDS = 7 * 86_400  # and those that the same command would continue after this
PRUNE_SECONDS = 2.0  # between looks at the same folder
_pruned: dict[Path, float] = {}  # folder -> when it was last looked at


def is_partial(name: str) -> bool:
    """Whether a name in a folder of the cache is that of an entry that is not complete."""
    return ".incomplete-" in name or ".partial-" in name or ".removed-" in name


def prune_sometimes(parent: Path) -> None:
    """Prune a folder, but not for each of thousands of entries that are made in a row."""
    now = time.monotonic()
    if now - _pruned.get(parent, -PRUNE_SECONDS) >= PRUNE_SECONDS:
        _prune(parent)
        _pruned[parent] = time.monotonic()


def _prune(parent: Path) -> None:
    """Remove old unused and incomplete entries. An entry that a process uses stays."""
    now = time.time()
    for entry in parent.iterdir():
        try:
            age = now - entry.stat().st_mtime
        except OSError:  # removed by another process
            continue
        if ".partial-" in entry.name:
            limit = PARTIAL_SECONDS
        else:
            limit = ABANDONED_SECONDS if is_partial(entry.name) else UNUSED_SECONDS
        if age > limit and entry.is_dir():
            remove_entry(entry)
        elif age > limit and entry.suffix == ".failed":  # see app/preparation/waiting.py
            entry.unlink(missing_ok=True)


def remove_entry(entry: Path) -> bool:
    """Remove an entry of the cache, complete or not, unless a process uses it. Returns whether it was removed."""
    if is_partial(entry.name):
        return _remove_partial(entry)
    try:
        file = take_from_use(entry)
    except OSError:  # no locks here, or read-only: what was opened within a day may be in use
        if time.time() - entry.stat().st_mtime < ABANDONED_SECONDS:
            return False
        shutil.rmtree(entry, ignore_errors=True)
        return not entry.exists()
    if file is None:
        return False
    try:
        aside = entry.with_name(f"{entry.name}.removed-{os.getpid()}")
        entry.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _remove_partial(entry: Path) -> bool:
    """Remove what was left of an entry, unless the process that makes it is still at work: it holds the entry's lock."""
    lock, file = entry.with_name(f"{entry.name.partition('.')[0]}.lock"), None
    if ".removed-" not in entry.name:
        try:
            file = try_lock(lock)
        except OSError:  # no locks here, or read-only: who makes it may have begun within a day
            if time.time() - entry.stat().st_mtime < ABANDONED_SECONDS:
                return False
        else:
            if file is None:
                return False
    shutil.rmtree(entry, ignore_errors=True)
    if file is not None:
        release(file, lock)
    return not entry.exists()


def put_aside(entry: Path) -> bool:
    """Remove an entry that nobody shall find any more; if a process uses it, what it has opened stays open, and the rest is
    removed a day later. False if it was gone already.
    """
    if remove_entry(entry):
        return True
    try:
        entry.rename(entry.with_name(f"{entry.name}.removed-{time.time_ns()}"))
    except OSError:
        return False
    return True
