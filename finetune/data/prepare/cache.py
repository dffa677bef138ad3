"""Cache of converted data on disk. Entries are published by rename, so they are complete or absent.

Each has checksums of its files, which are compared when it is opened (checksums.py). One that is damaged is reported,
removed, and made again.

An entry is a folder `<kind>/<key>`. While a process makes it, that process holds the lock `<kind>/<key>.lock`, and others that
want the same entry wait (locks.py). What an interrupted process leaves of an entry that can be continued is in
`<kind>/<key>.partial-<host>`. What is old is removed whenever an entry is made (cache_removal.py).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from finetune.data.prepare.cache_removal import prune_sometimes, put_aside
from finetune.data.prepare.checksums import find_damage, has_checksums, write_checksums
from finetune.data.prepare.locks import exclusive
from finetune.data.prepare.progress import current_stage
from finetune.errors import FinetuneError, Stopped, UserError, system_error

ABOUT = "about.json"  # what an entry was made from, for `finetune cache`
INTERRUPTIONS = (KeyboardInterrupt, SystemExit, GeneratorExit, Stopped)  # after these, partial work is kept

Notify = Callable[[str], None]


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/finetune, or ~/.cache/finetune."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "finetune"


def digest(*parts: Any) -> str:
    """Digest of JSON-serializable parts, as 32 hex digits; the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


ALTERNATIVE = "or set XDG_CACHE_HOME to a folder on another disk."

_recorded: ContextVar[dict[Path, None] | None] = ContextVar("recorded", default=None)


@contextmanager
def recorded_entries() -> Iterator[dict[Path, None]]:
    """The paths of all entries that are opened or made inside, as keys in order."""
    found: dict[Path, None] = {}
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)


def find_entry(kind: str, key: str, notify: Notify | None = None) -> Path | None:
    """The path of a complete entry, whose time of last use becomes now; None if there is none that is as it was written.

    notify: is called with a line about an entry that is damaged, which is removed.
    """
    final = cache_folder() / kind / key
    if not is_intact(final, notify):
        return None
    _opened(final)
    return final


def is_intact(entry: Path, notify: Notify | None = None) -> bool:
    """Whether an entry is there, as it was written. One that is damaged is reported and removed."""
    if not entry.is_dir():
        return False
    if not has_checksums(entry):  # of an earlier version
        put_aside(entry)
        return False
    damage = find_damage(entry)
    if not damage:
        return True
    about = read_about(entry)
    if put_aside(entry) and notify is not None:
        notify(
            f"note: {entry.parent.name}/{entry.name}{about and f' ({about})'} in the cache is damaged: {damage}; made again"
        )
    return False


def read_about(entry: Path) -> str:
    """What an entry was made from; "" if it does not say."""
    try:
        return str(json.loads((entry / ABOUT).read_text("utf-8"))["about"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _opened(entry: Path) -> None:
    touch(entry)
    recorded = _recorded.get()
    if recorded is not None:
        recorded[entry] = None


def publish(
    kind: str,
    key: str,
    write: Callable[[Path], None],
    *,
    about: str = "",
    notify: Notify | None = None,
    resumable: bool = False,
) -> Path:
    """Path of the cache entry `kind/key`, which `write(folder)` creates if it does not exist.

    Any number of processes may call it at the same time: one writes, the others wait for it; if it ends before, the next
    one takes over.

    about: what the entry is made from, such as "train.jsonl", for people. notify: is called with a line if it has to wait.
    resumable: after an interruption, `write` is called next time with the folder as it was left.
    Raises: UserError if the disk is full or read-only.
    """
    notify = notify or current_stage().notify
    found = find_entry(kind, key, notify)
    if found is not None:
        return found
    final = cache_folder() / kind / key
    try:
        _make_home(final.parent)
        prune_sometimes(final.parent)
        lock = final.with_name(f"{key}.lock")
        with exclusive(lock, about or kind, notify, finished=final.is_dir) as held:
            if not final.is_dir():
                _make(final, write, about, resumable=resumable and held)
    except FinetuneError:
        raise
    except Exception as error:  # libraries pass on the system's error in words only
        fault = _as_user_error(error, final.parent)
        if fault is None:
            raise
        raise fault from error
    _opened(final)
    return final


def _make_home(folder: Path) -> None:
    """Raises: UserError whatever the reason is: a HOME that is a file, or on a disk that is gone, is a mistake of the user."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fault = _as_user_error(error, folder) or _unwritable(error.errno or errno.EIO, error.filename or folder)
        raise fault from error


def _make(final: Path, write: Callable[[Path], None], about: str, *, resumable: bool) -> None:
    if resumable:
        incomplete = final.with_name(f"{final.name}.partial-{_host()}")
        incomplete.mkdir(exist_ok=True)
        os.utime(incomplete)
    else:
        incomplete = Path(tempfile.mkdtemp(prefix=f"{final.name}.incomplete-", dir=final.parent))
        incomplete.chmod(0o777 & ~_umask())
    keep = False
    try:
        write(incomplete)
        (incomplete / ABOUT).write_text(json.dumps({"about": about, "made": time.time()}), "utf-8")
        write_checksums(incomplete)
        _rename(incomplete, final)
    except INTERRUPTIONS:
        keep = resumable
        raise
    finally:
        if not keep:
            shutil.rmtree(incomplete, ignore_errors=True)


def _rename(incomplete: Path, final: Path) -> None:
    try:
        incomplete.rename(final)
    except OSError:
        if not final.is_dir():  # otherwise another process published the same entry first
            raise


def _host() -> str:
    """The name of this machine, as part of a file name."""
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:64]


def _umask() -> int:
    value = os.umask(0o077)
    os.umask(value)
    return value


def touch(folder: Path) -> None:
    """Set the time of last use of an entry."""
    try:
        os.utime(folder)
    except OSError:  # a read-only cache can still be read
        return


def _as_user_error(error: Exception, folder: Path) -> UserError | None:
    """A UserError for a full or read-only disk, and for a limit of the system; None for any other error."""
    number = system_error(error)
    if number in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(_existing(folder)).free
        return UserError(
            f"the disk is full ({free // 2**20:,} MiB free), so the data cannot be converted",
            where=str(folder),
            remedy=f"Free some space, {ALTERNATIVE} Incomplete files have been removed.",
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EFBIG):
        return _unwritable(number, getattr(error, "filename", None) or folder)
    return None


def _unwritable(number: int, where: str | Path) -> UserError:
    remedy = "Raise the limit (ulimit -f)" if number == errno.EFBIG else "Make it writable"
    return UserError(
        f"the cache of converted data cannot be written: {os.strerror(number)}",
        where=str(where),
        remedy=f"{remedy}, {ALTERNATIVE}",
    )


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
