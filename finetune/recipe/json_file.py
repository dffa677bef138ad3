"""Small JSON files that may come from a stranger: whatever is wrong with one is a ValueError or an OSError, and no more
than MAX_BYTES of it are held in memory.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

MAX_DIGITS = 308  # of an integer: what is larger is no number that a float holds
MAX_BYTES = 1 << 28  # tokenizers of large vocabularies have 30 MiB, manifests of thousands of ranks less


def read_json(path: Path, *, limit: int = MAX_BYTES) -> Any:
    """The value in a file.

    Raises: OSError if it cannot be read; ValueError if it is no regular file, has more than `limit` bytes, or is not
    JSON of numbers and a depth that can be held (nested too deeply, an integer of hundreds of digits).
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    if status.st_size > limit:
        raise ValueError(f"{path.name} has {status.st_size:,} bytes, more than {limit:,}")
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """The value of a text. Raises: ValueError for whatever is wrong with it."""
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)
