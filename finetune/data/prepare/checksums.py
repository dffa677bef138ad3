"""Checksums of a cache entry: written when it is published, compared when it is opened.

An entry is read in full when it is opened, unless this machine did so within the last hour, since when it was not started
anew and no file of the entry has another size, time or inode. So whatever is changed through the file system is found
before anything is trained on it, and bits that rot on the disk are found at the next start an hour later.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from finetune.recipe.quotas import available_cores

FILE = "checksums.json"  # {file: [bytes, [CRC-32 of each section]]}
CHECKED = ".checked"  # when, and in which state, the entry was read in full
LEFT_OUT = (FILE, "about.json", ".in-use")  # the time in about.json would make equal entries differ
SECTION_BYTES = 64 << 20  # read by one thread
READ_BYTES = 1 << 20
AGAIN_SECONDS = 3_600.0
THREADS = 8


def write_checksums(folder: Path) -> None:
    """The last file of an entry."""
    found = _checksums(folder)
    (folder / FILE).write_text(json.dumps(found), "utf-8")
    _remember(folder)


def has_checksums(folder: Path) -> bool:
    """False for an entry of an earlier version."""
    return (folder / FILE).is_file()


def find_damage(folder: Path) -> str:
    """What is wrong with an entry, such as "rows.bin: other content than when it was written"; "" for nothing."""
    if _checked_lately(folder):
        return ""
    try:
        written = {name: (size, list(sums)) for name, (size, sums) in json.loads(_text(folder / FILE)).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{FILE}: cannot be read"
    try:
        sizes = {name: (folder / name).stat().st_size for name in _names(folder)}
        for name, (size, _) in written.items():
            if name not in sizes:
                return f"{name}: is missing"
            if sizes[name] != size:
                return f"{name}: has {sizes[name]:,} bytes instead of {size:,}"
        for name, (_, sums) in _checksums(folder).items():
            if name in written and sums != written[name][1]:
                return f"{name}: other content than when it was written"
    except OSError as error:
        return f"{Path(error.filename or '').name}: {error.strerror}"
    _remember(folder)
    return ""


def _names(folder: Path) -> list[str]:
    paths = (Path(home) / name for home, _, names in os.walk(folder) for name in names)
    found = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in found if name not in LEFT_OUT and not name.startswith(CHECKED))


def _checksums(folder: Path) -> dict[str, tuple[int, list[int]]]:
    """Name -> (bytes, CRC-32 of each section). Large files are read by several threads."""
    sizes = {name: (folder / name).stat().st_size for name in _names(folder)}
    sections = [(folder / name, start) for name, size in sizes.items() for start in range(0, size, SECTION_BYTES)]
    if len(sections) > len(sizes):
        with ThreadPoolExecutor(min(THREADS, available_cores())) as pool:
            sums: Iterator[int] = iter(list(pool.map(_crc, sections)))
    else:
        sums = map(_crc, sections)
    return {name: (size, [next(sums) for _ in range(0, size, SECTION_BYTES)]) for name, size in sizes.items()}


def _crc(section: tuple[Path, int]) -> int:
    path, start = section
    found, left = 0, SECTION_BYTES
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (data := file.read(min(left, READ_BYTES))):
            found, left = zlib.crc32(data, found), left - len(data)
    return found


def _state(folder: Path) -> list[Any]:
    """What changes if a file does: size, times and inode of each; and the start of the system."""
    stats = [(name, (folder / name).stat()) for name in (*_names(folder), FILE)]
    return [_boot(), [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats]]


@cache
def _boot() -> str:
    """After a power failure, files may have lost what was not on the disk yet, without another time."""
    try:
        return _text(Path("/proc/sys/kernel/random/boot_id")).strip()
    except OSError:
        return ""


def _checked_lately(folder: Path) -> bool:
    try:
        at, state = json.loads(_text(folder / CHECKED))
        return 0 <= time.time() - at < AGAIN_SECONDS and bool(state == _state(folder))
    except (OSError, ValueError, TypeError):
        return False


def _remember(folder: Path) -> None:
    """Where nothing can be written, the entry is read in full each time."""
    beside = folder / f"{CHECKED}.{os.getpid()}.tmp"
    with suppress(OSError):
        beside.write_text(json.dumps([time.time(), _state(folder)]), "utf-8")
        beside.replace(folder / CHECKED)


def _text(path: Path) -> str:
    return path.read_text("utf-8")
