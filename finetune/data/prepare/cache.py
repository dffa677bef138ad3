"""Cache of converted data on disk. Entries are published by rename, so they are complete or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.errors import UserError

UNUSED_SECONDS = 30 * 86_400  # entries not opened for this long are removed
ABANDONED_SECONDS = 86_400  # incomplete entries of crashed processes are removed after this


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/finetune, or ~/.cache/finetune."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "finetune"


def digest(*parts: Any) -> str:
    """Digest of JSON-serializable parts, as 32 hex digits; the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def publish(kind: str, key: str, write: Callable[[Path], None]) -> Path:
    """Path of the cache entry `kind/key`, which `write(folder)` creates if it does not exist.

    Any number of processes may call it at the same time: each writes a copy of its own, the first rename wins, and the
    other copies are removed.
    Raises: UserError if the disk is full or read-only.
    """
    final = cache_folder() / kind / key
    if final.is_dir():
        _touch(final)
        return final
    incomplete: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _prune(final.parent)
        incomplete = Path(tempfile.mkdtemp(prefix=f"{key}.incomplete-", dir=final.parent))
        write(incomplete)
        _rename(incomplete, final)
    except OSError as error:
        raise _as_user_error(error, final.parent) from error
    finally:
        if incomplete is not None:
            shutil.rmtree(incomplete, ignore_errors=True)
    return final


def _rename(incomplete: Path, final: Path) -> None:
    try:
        incomplete.rename(final)
    except OSError:
        if not final.is_dir():  # otherwise another process published the same entry first
            raise


def _touch(folder: Path) -> None:
    try:
        os.utime(folder)
    except OSError:  # a read-only cache can still be read
        return


def _prune(parent: Path) -> None:
    """Remove old unused and incomplete entries. On POSIX, open memory maps of them stay valid."""
    now = time.time()
    for entry in parent.iterdir():
        try:
            age = now - entry.stat().st_mtime
        except OSError:  # removed by another process
            continue
        if age > (ABANDONED_SECONDS if ".incomplete-" in entry.name else UNUSED_SECONDS):
            shutil.rmtree(entry, ignore_errors=True)


def _as_user_error(error: OSError, folder: Path) -> Exception:
    """A UserError for a full or read-only disk; any other error is returned as it is."""
    alternative = "or set XDG_CACHE_HOME to a folder on another disk."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(_existing(folder)).free
        return UserError(
            f"the disk is full ({free // 2**20:,} MiB free), so the data cannot be converted",
            where=str(folder),
            remedy=f"Free some space, {alternative} Incomplete files have been removed.",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
        return UserError(
            f"the cache of converted data cannot be written: {error.strerror}",
            where=str(error.filename or folder),
            remedy=f"Make it writable, {alternative}",
        )
    return error


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
