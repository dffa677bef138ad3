"""The identity of a file before it is read as a whole: of large files from samples, so that a stream can begin at once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from finetune.data.formats.compression import unreadable
from finetune.data.prepare.file_digest import file_digest

WHOLE_BYTES = 1 << 30  # up to here, all of the content counts
SAMPLES, SAMPLE_BYTES = 64, 1 << 20


def quick_digest(path: Path) -> list[Any]:
    """[size, digest of the content]; of a file of more than 1 GiB [size, modification time, digest of 64 samples].

    Raises: UserError if it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size <= WHOLE_BYTES:
            return [size, file_digest(path)]
        return [size, path.stat().st_mtime_ns, _samples(path, size)]
    except OSError as error:
        raise unreadable(path, error) from error


def _samples(path: Path, size: int) -> str:
    content = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        for index in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * index // (SAMPLES - 1), os.SEEK_SET)
            content.update(file.read(SAMPLE_BYTES))
    return content.hexdigest()
