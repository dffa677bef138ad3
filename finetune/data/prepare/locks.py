"""Locks between processes: one prepares a cache entry, the others wait and say for whom; an entry in use is not removed.

All locks are flock locks, so the system releases them when their process ends, however it ends. They hold across machines
where the file system supports that (NFS 4 does). Where it supports no locks at all, the work is done without them: entries
are published by rename, so the worst that can happen is that two processes do the same work.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune.data.prepare.records import allow_open_files

POLL_SECONDS = 0.1
REPEAT_SECONDS = 60.0  # between two lines that report the waiting
_BUSY = (BlockingIOError, PermissionError)  # what flock raises if another process holds the lock

_held: set[Path] = set()  # by this process
_used: dict[Path, int] = {}  # entry -> file descriptor with a shared lock, kept until this process ends


class NoLocks(OSError):
    """The file system of the cache supports no locks."""


def try_lock(path: Path) -> int | None:
    """Take the lock file at `path`, and write into it who holds it. Returns its file descriptor, None if it is taken.

    Raises: NoLocks.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file, path):  # its last holder has removed it meanwhile
                os.close(file)
                continue
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode(), 0)
            return file
        except _BUSY:
            os.close(file)
            return None
        except OSError as error:
            os.close(file)
            raise NoLocks(*error.args) from error


def release(file: int, path: Path) -> None:
    """Remove the lock file and let go of it."""
    with suppress(OSError):
        path.unlink()
    os.close(file)


def holder(path: Path) -> str:
    """Who holds the lock file: "process 4711", with its machine if that is another one."""
    try:
        owner = json.loads(path.read_text("utf-8"))
        there = "" if owner["host"] == platform.node() else f" on {owner['host']}"
        return f"process {owner['pid']}{there}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def exclusive(
    path: Path, what: str, notify: Callable[[str], None] | None, *, finished: Callable[[], bool]
) -> Iterator[bool]:
    """Around work that one process at a time may do. Yields whether the lock is held: it is not where the file system has
    no locks, where this process holds it already, and once `finished()` is true because another process did the work.

    what: for the line that reports waiting, such as "the preparation of train".
    """
    if path in _held:
        yield False
        return
    file = _wait_for(path, what, notify, finished)
    if file is None:
        yield False
        return
    _held.add(path)
    try:
        yield True
    finally:
        _held.discard(path)
        release(file, path)


def _wait_for(path: Path, what: str, notify: Callable[[str], None] | None, finished: Callable[[], bool]) -> int | None:
    reported, last = -REPEAT_SECONDS, ""
    while not finished():
        try:
            file = try_lock(path)
        except NoLocks as error:
            if notify is not None:
                notify(
                    f"note: {path.parent} does not support locks ({error.strerror}): two runs at once may both "
                    f"prepare {what}"
                )
            return None
        if file is not None:
            if last and notify is not None:
                notify(f"{last} has ended; continuing with {what}")
            return file
        if time.monotonic() - reported > REPEAT_SECONDS:
            reported, last = time.monotonic(), holder(path)
            if notify is not None:
                notify(f"waiting for {last}, which prepares {what}")
        time.sleep(POLL_SECONDS)
    return None


def use(entry: Path) -> bool:
    """Mark a cache entry as in use until this process ends, so that no other removes it. False if it is not there (any
    more). Where nothing can be locked or written, the entry is used without a mark.
    """
    if entry in _used:
        if _is_at(_used[entry], entry / ".in-use"):
            return True
        os.close(_used.pop(entry))  # another one has taken its place, or none
    if len(_used) >= _most_marks():
        return entry.is_dir()
    try:
        file = os.open(entry / ".in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return entry.is_dir()
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except _BUSY:  # it is being removed
        os.close(file)
        return False
    except OSError:
        os.close(file)
        return entry.is_dir()
    if not _is_at(file, entry / ".in-use"):
        os.close(file)
        return False
    _used[entry] = file
    return True


def _most_marks() -> int:
    """Each mark keeps a file open. Half of those that this process may open are for others: a table may have thousands
    of parts, and a limit of 1,024 is usual.
    """
    allow_open_files()
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def take_from_use(entry: Path) -> int | None:
    """A file descriptor that keeps others from using the entry while it is removed; None if a process uses it.

    Raises: NoLocks.
    """
    file = os.open(entry / ".in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except _BUSY:
        os.close(file)
        return None
    except OSError as error:
        os.close(file)
        raise NoLocks(*error.args) from error
    return file


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file is still the one at this path."""
    try:
        there = path.stat()
    except OSError:
        return False
    own = os.fstat(file)
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)
