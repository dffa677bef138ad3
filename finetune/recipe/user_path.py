"""The one door for paths that a user names, on a command line, in a recipe or from Python: ~ is the home folder."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from finetune.errors import UserError

MAX_PATH, MAX_NAME, MAX_PARTS = 4096, 255, 100  # of Linux, but for the last: patterns are matched part by part


def user_path(named: str | Path) -> Path:
    """The path with the home folder in place of ~ or ~user. A file or folder that is called ~x itself is found.

    Raises: UserError for a home folder of nobody, and for what no file can be called.
    """
    text = str(named)
    if problem := unusable(text):
        raise UserError(f"this is {problem}", where=text if len(text) <= MAX_NAME else "", remedy="Give another path.")
    return Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib raises RuntimeError


def unusable(value: str) -> str:
    """Why no file or folder can have this name, and no pattern match one; "" if some can."""
    if len(value) > MAX_PATH:
        return f"a path of {len(value):,} characters"
    if "\0" in value:
        return "a path with a null character"
    parts = value.split("/")
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in parts)
    if longest > MAX_NAME:
        return f"a name of {longest:,} bytes in a path"
    if len(parts) > MAX_PARTS:
        return f"a path of {len(parts):,} parts"
    if value.startswith("~") and os.path.expanduser(value) == value and not Path(value).exists():  # noqa: PTH111
        user = parts[0].removeprefix("~")
        reason = f"there is no user {user!r}" if user else "HOME is not set, and the user has none"
        return f"a home folder of nobody: {reason}"
    return ""


def near_path(named: str) -> str:
    """A sentence for a remedy, if `named` is not there and a file or folder beside it resembles it; else empty.

    "chat.jsnl" -> "Did you mean chat.jsonl? "
    """
    path = Path(named)
    if unusable(named) or path.exists() or not path.name or not path.parent.is_dir():
        return ""
    try:
        names = [entry.name for entry in os.scandir(path.parent)]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f"Did you mean {path.parent / near[0]}? " if near else ""
