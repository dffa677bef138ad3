"""The folder of converted data: an entry appears whole, by rename, or not at all, however many write it."""

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

UNUSED_SECONDS = 30 * 86_400  # an entry that nobody opened for so long is removed
ABANDONED_SECONDS = 86_400  # a half entry that a crash left


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/finetune, or ~/.cache/finetune."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "finetune"


def digest(*parts: Any) -> str:
    """32 hex digits that name JSON-able parts; equal parts, equal digest, on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def publish(kind: str, key: str, write: Callable[[Path], None]) -> Path:
    """The folder `kind/key` of the cache; made by `write(folder)` unless it is there.

    Ranks may call it at the same time: each writes its own, the first rename wins, the others are thrown away.
    Raises: UserError if the disk is full or read-only.
    """
    final = cache_folder() / kind / key
    if final.is_dir():
        _touch(final)
        return final
    half: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _prune(final.parent)
        half = Path(tempfile.mkdtemp(prefix=f"{key}.incomplete-", dir=final.parent))
        write(half)
        _rename(half, final)
    except OSError as error:
        raise _as_user_error(error, final.parent) from error
    finally:
        if half is not None:
            shutil.rmtree(half, ignore_errors=True)
    return final


def _rename(half: Path, final: Path) -> None:
    try:
        half.rename(final)
    except OSError:
        if not final.is_dir():  # otherwise another process was first, and wrote the same
            raise


def _touch(folder: Path) -> None:
    try:
        os.utime(folder)
    except OSError:  # a read-only cache serves as well; only its age is not renewed
        return


def _prune(parent: Path) -> None:
    """Removes entries long unused and half entries long abandoned. Open memory maps survive on POSIX."""
    now = time.time()
    for entry in parent.iterdir():
        try:
            age = now - entry.stat().st_mtime
        except OSError:  # removed by another process meanwhile
            continue
        if age > (ABANDONED_SECONDS if ".incomplete-" in entry.name else UNUSED_SECONDS):
            shutil.rmtree(entry, ignore_errors=True)


def _as_user_error(error: OSError, folder: Path) -> Exception:
    """Disk trouble in the cache becomes a UserError; trouble elsewhere (the source itself) stays what it is."""
    move = "or set XDG_CACHE_HOME to a folder on another disk."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(_existing(folder)).free
        return UserError(
            f"the disk is full while data is converted ({free // 2**20:,} MiB free)",
            where=str(folder),
            remedy=f"Free some space, {move} Nothing half-written was left behind.",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
        return UserError(
            f"the cache of converted data cannot be written ({error.strerror})",
            where=str(error.filename or folder),
            remedy=f"Make it writable, {move}",
        )
    return error


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
