"""Files that are whole or absent: written beside their name, flushed to the disk, then renamed."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError


def publish_text(path: Path, text: str) -> None:
    """Replace `path` in one step; a crash or a full disk leaves the former content.

    Raises: FinetuneError naming the path if the disk refuses.
    """
    beside = path.with_name(f".{path.name}.incomplete")
    with told(path):
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


def publish_json(path: Path, value: Any) -> None:
    """Replace `path` with strict JSON. Raises: FinetuneError if the disk refuses."""
    publish_text(path, json.dumps(plain(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def share_modes(folder: Path) -> None:
    """Give every file in `folder` the permissions of a new file: safetensors writes files that only their owner reads."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        new = Path(beside) / "new"
        new.touch()
        mode = new.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn an OSError (full disk, no permission) into a FinetuneError that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise FinetuneError(
            f"cannot write: {reason}",
            where=str(path),
            remedy="free space or choose another place with --run-dir; the same command then resumes",
        ) from error


def plain(value: Any) -> Any:
    """The value as strict JSON takes it: numpy and torch scalars become numbers, NaN and infinity null, paths text."""
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
