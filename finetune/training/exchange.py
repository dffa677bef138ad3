"""Exchange the names of two files or folders in one step, where the system can."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2), Linux 3.15, glibc 2.28


def exchange(one: Path, other: Path) -> bool:
    """False where nothing was done: on another system, or a file system that cannot, such as some of networks.

    Raises: OSError if one of them is not there.
    """
    for path in (one, other):
        path.lstat()
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    done = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), ctypes.c_uint(_EXCHANGE))
    return int(done) == 0
