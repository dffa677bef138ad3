"""Ranks that wait for the process that prepares: through files beside the entry, never in a collective."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from finetune.app.preparation.entry import find_prepared
from finetune.app.preparation.request import KIND, Names
from finetune.data.prepare.cache import cache_folder
from finetune.errors import FinetuneError

POLL_SECONDS = 0.1
QUIET_SECONDS = 60.0  # without anybody who prepares, after which a waiting rank does it itself


def wait_for_prepared(names: Names) -> Path | None:
    """Look for the entry until another process of this machine has published it; None if nobody prepares it.

    Raises: PreparationFailed if that process reports that it failed.
    """
    began = quiet_since = time.time()
    lock, failed = _beside(names, "lock"), _beside(names, "failed")
    while True:
        found = find_prepared(names)
        if found is not None:
            return found
        if lock.exists():
            quiet_since = time.time()
        if _time_in(failed) > began:
            raise PreparationFailed("another process failed while preparing the data")
        if time.time() - quiet_since > QUIET_SECONDS:
            return None
        time.sleep(POLL_SECONDS)


def report_failure(names: Names) -> None:
    """Let those who wait for this entry know that it will not come."""
    with suppress(OSError):
        _beside(names, "failed").write_text(repr(time.time()), "utf-8")


def clear_failure(names: Names) -> None:
    """What an earlier process reported does not count any more."""
    with suppress(OSError):
        _beside(names, "failed").unlink(missing_ok=True)


class PreparationFailed(FinetuneError):
    """The process that this one waited for failed, and reports why itself."""


def _beside(names: Names, extension: str) -> Path:
    return cache_folder() / KIND / f"{names.published}.{extension}"


def _time_in(path: Path) -> float:
    try:
        return float(path.read_text("utf-8"))
    except (OSError, ValueError):
        return 0.0
