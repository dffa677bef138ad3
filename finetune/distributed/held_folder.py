"""Temporary folders that outlive no launch: each is locked by the processes that use it, so that a later start knows which
of them were left by processes that were killed, and removes these. No torch here.

The lock is flock's on the folder itself: the kernel releases it however a process ends, forked ranks inherit it, and it holds
between containers that share a disk, where process ids say nothing. Folders without `MARK` are never removed: whoever made
them, nobody said that they may go.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "finetune-"  # of the folder's name
MARK = ".goes-with-its-processes"  # an empty file in it, made once the folder is held


def make_folder(prefix: str, place: Path | None = None) -> tuple[Path, int]:
    """A new folder that only this user can enter, and the descriptor that holds it until it is closed or this process and
    its forks end. Before, those of the same prefix that nobody holds are removed. place: None for the system's temporary
    folder. Raises: OSError if none can be made.
    """
    home = Path(tempfile.gettempdir()) if place is None else place
    remove_abandoned(home, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
    held = hold_folder(folder)
    with suppress(OSError):  # the disk is full: the folder is used, and not removed if this process is killed
        (folder / MARK).touch()
    return folder, held


def hold_folder(folder: Path) -> int:
    """Keep a folder from `remove_abandoned` until the descriptor that is returned is closed, by this process and its forks."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    with suppress(OSError):  # a file system without locks: nobody removes what is in it, either
        fcntl.flock(held, fcntl.LOCK_SH)
    return held


def remove_abandoned(home: Path, prefix: str) -> None:
    """Remove this user's folders of a prefix that no process holds. What cannot be removed stays."""
    for folder in home.glob(f"{prefix}*"):
        with suppress(OSError):
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or not (folder / MARK).is_file():
                continue
            file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(file)
