"""Atomic file writes: written to a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetune.errors import DISK_FULL, ODD_PATH, FinetuneError, UserError, system_error
from finetune.units import format_bytes


def publish_text(path: Path, text: str) -> None:
    """Replace `path` atomically; after a crash or on a full disk the previous content is still there.

    A link is followed, and its target replaced: /dev/stdout, say, stays what it is.
    Raises: FinetuneError naming the path if it cannot be written; UserError for a pipe, a device or a socket.
    """
    path = _plain_file(path)
    beside = path.with_name(f".{path.name}.incomplete")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)


PAGE = "<!doctype html>"  # what the head of every page has
_HEAD_CHARS = 1_000


def check_file(path: Path, own: str) -> None:
    """Before the work of which `publish_text` will write the result. own: what the head of each such file has.

    Raises: UserError for a folder, a pipe or a device, a place where no file can be, and a file that holds something else.
    """
    file = _plain_file(path)
    if file.is_dir():
        raise UserError("is a folder", where=str(path), remedy="Give the name of a file.")
    check_folder(file.parent, "Give another path.")
    if not file.exists():
        return
    with disk_errors(path), file.open(encoding="utf-8", errors="replace") as text:
        head = text.read(_HEAD_CHARS)
    if head.strip() and own not in head:
        raise UserError(
            "holds something else than an earlier result, and would be replaced",
            where=str(path),
            remedy="Give another name, or remove the file.",
        )


def check_folder(folder: Path, remedy: str) -> None:
    """Raises: UserError if neither `folder` is one nor can be made, because it or something on its way is a file."""
    with disk_errors(folder, remedy):
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.stat()  # a link to itself, and a name that is too long, are errors
        way = whole = Path(os.path.realpath(folder))  # a link to nothing becomes what it leads to
        while not way.exists() and way != way.parent:
            way = way.parent
        if not way.is_dir():
            name = "it" if way == whole else way
            raise UserError(f"cannot be used: {name} is not a folder", where=str(folder), remedy=remedy)


def _plain_file(path: Path) -> Path:
    with disk_errors(path):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:  # or a link to nothing, in whose place the file will be
            return path
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UserError("is no file but a pipe or a device", where=str(path), remedy="Give the name of a file.")
        return path.resolve() if path.is_symlink() else path


def publish_json(path: Path, value: Any) -> None:
    """Replace `path` with strict JSON, atomically. Raises: FinetuneError if it cannot be written."""
    publish_text(path, json.dumps(plain(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def share_modes(folder: Path) -> None:
    """Give every file in `folder` the permissions of a new file: safetensors makes them readable by their owner only."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        new = Path(beside) / "new"
        new.touch()
        mode = new.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


RESUME = "Free some space and run the same command again to resume, or choose another folder with --run-dir."
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
ELSEWHERE = "Make the folder writable, or choose another one with --run-dir."


@contextmanager
def disk_errors(path: Path, remedy: str = RESUME) -> Iterator[None]:
    """Raise a FinetuneError that names the path in place of an error of the system (full disk, no permission), also of one
    that a library passes on in words, as safetensors does.
    """
    try:
        yield
    except FinetuneError:
        raise
    except Exception as error:
        number = system_error(error)
        if number is None:
            raise
        if number in ODD_PATH:
            raise UserError(
                f"cannot write: {os.strerror(number)}", where=str(path), remedy="Give another path."
            ) from error
        full = number in (errno.ENOSPC, errno.EDQUOT)
        free = f" ({format_bytes(_free(path))} free)" if full else ""
        what, kind = f"cannot write: {os.strerror(number)}{free}", DISK_FULL if full else ""
        remedy = ELSEWHERE if remedy is RESUME and number in UNWRITABLE else remedy
        raise FinetuneError(what, where=str(path), remedy=remedy, kind=kind) from error


def _free(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def plain(value: Any) -> Any:
    """The value in types of strict JSON: numpy and torch scalars become numbers, NaN and infinity null, paths strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "tolist"):  # numpy arrays and scalars, tensors
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
