"""How many workers this machine carries, and how much memory each may use, so that one bad row cannot take the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from finetune.recipe.quotas import available_cores, group_memory

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MIN_BYTES = 1 << 30  # that a worker may use at least
SHARE = 0.8  # of the free memory that all workers may use together


def available_bytes() -> int:
    """Memory that is free on this machine, or in this container if that is less."""
    free, left = psutil.virtual_memory().available, group_memory()
    return free if left is None else min(free, left)


def default_workers() -> int:
    """One worker for each core, as far as the memory allows."""
    return max(1, min(available_cores(), int(SHARE * available_bytes()) // MIN_BYTES))


def worker_bytes(workers: int) -> int:
    """Memory that each of so many workers may use in addition to what it starts with."""
    return max(MIN_BYTES, int(SHARE * available_bytes()) // workers)


def limit_memory(more: int) -> None:
    """From now on, this process gets at most `more` bytes in addition to what it has; then Python raises MemoryError.

    Counted is private memory only, not files that are mapped. Linux; elsewhere nothing happens.
    """
    used = _private_bytes()
    if resource is None or used is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + more
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """`limit_memory` for some time."""
    if resource is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_memory(more)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _private_bytes() -> int | None:
    """Bytes that count against RLIMIT_DATA."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
