"""Digests of many small files, such as the images that rows name, by their content.

As in file_digest.py, a file is read again only if its size, times or inode differ from the last time; here one memory holds
all files of a folder, and workers of the preparation read them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.data.prepare.cache import cache_folder, digest
from finetune.data.prepare.file_digest import FOLDER, SETTLED_SECONDS, read_digest
from finetune.data.prepare.pool import Chunk, map_chunks
from finetune.data.prepare.progress import Meter, current_stage

MISSING = "missing"  # the digest of a file that cannot be read
FILES = 64  # read by a worker at a time

Stat = list[int]  # size, mtime_ns, ctime_ns, inode


def content_digests(paths: Iterable[str], about: str = "images") -> list[str]:
    """The digest of each file's content, 32 hex digits; MISSING for one that is not there. about: for the progress shown."""
    paths = list(paths)
    folders: dict[str, dict[str, None]] = {}
    for path in paths:
        home, name = os.path.split(path)
        folders.setdefault(home, {})[name] = None
    found: dict[str, str] = {}
    for home, names in folders.items():
        found.update(_in_folder(home, list(names), about))
    return [found[path] for path in paths]


def joint_digest(paths: Iterable[str]) -> str:
    """One digest of the contents of several files in order, whatever they are called; "" of none."""
    found = content_digests(paths)
    return digest("contents", found) if found else ""


class DigestJob:
    """Reads files; see pool.Job."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def run(self, chunk: Chunk) -> list[str]:
        """The digests of files [first, last)."""
        return [_digest_of(path) for path in self.paths[chunk[0] : chunk[1]]]

    def describe(self, chunk: Chunk) -> str:
        """The first file."""
        return self.paths[chunk[0]]


def _in_folder(home: str, names: Sequence[str], about: str) -> dict[str, str]:
    """Path -> digest for files of one folder."""
    memory = cache_folder() / FOLDER / f"folder-{digest(os.path.realpath(home))}.json"
    known: dict[str, list[Any]] = _read_memory(memory)  # name -> [stat, digest]
    paths = {name: os.path.join(home, name) for name in names}  # noqa: PTH118 - for each of a million images
    stats = _settled_stats(paths)
    asked = [name for name, stat in stats.items() if known.get(name, [None])[0] != stat]
    job = DigestJob([paths[name] for name in asked])
    chunks = [(first, min(first + FILES, len(asked))) for first in range(0, len(asked), FILES)]
    meter, digests = Meter(about, len(asked), doing="reading", unit="files"), []
    for chunk, some in map_chunks(job, chunks, workers=current_stage().workers):
        digests += some
        meter.update(chunk[1])
    meter.close()
    again = _stats({name: paths[name] for name in asked})
    changed = False
    for name, content in zip(asked, digests, strict=True):
        if content != MISSING and again.get(name) == stats[name]:  # otherwise it changed while it was read
            known[name], changed = [stats[name], content], True
    if changed:
        _write_memory(memory, known)
    fresh = dict(zip(asked, digests, strict=True))
    return {
        path: MISSING if name not in stats else fresh[name] if name in fresh else str(known[name][1])
        for name, path in paths.items()
    }


def _settled_stats(paths: dict[str, str]) -> dict[str, Stat]:
    """Of the files that are there. One that was modified just now may be modified again without a new time."""
    found = _stats(paths)
    youngest = max((max(stat[1], stat[2]) for stat in found.values()), default=0) / 1e9
    age = time.time() - youngest
    if 0 <= age < SETTLED_SECONDS:
        time.sleep(SETTLED_SECONDS - age)
        found = _stats(paths)
    return found


def _stats(paths: dict[str, str]) -> dict[str, Stat]:
    found = {}
    for name, path in paths.items():
        with suppress(OSError, ValueError):  # such as a name with a null byte
            stat = os.stat(path)  # noqa: PTH116 - Path takes three times as long
            found[name] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    return found


def _digest_of(path: str) -> str:
    try:
        return read_digest(Path(path))
    except (OSError, ValueError):
        return MISSING


def _read_memory(memory: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(memory.read_text("utf-8"))
        return {str(name): [list(stat), str(content)] for name, (stat, content) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_memory(memory: Path, known: dict[str, list[Any]]) -> None:
    """Another process may write the same at the same time; where nothing can be written, files are read each time."""
    beside = memory.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(known), "utf-8")
        beside.replace(memory)
