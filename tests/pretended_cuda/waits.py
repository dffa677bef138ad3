"""Waits of the host for the device, counted with the line that asks: what `.item()`, `.cpu()`, `if tensor:` cost on a GPU."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_OWN = f"{Path(__file__).parent}/"
_TESTS = f"{_OWN}test_"
_ROOT = Path(__file__).resolve().parents[2]
_listening: list[list[Wait]] = []


@dataclass(frozen=True)
class Wait:
    """why: the operation. place: file:line:function of the innermost frame outside of torch."""

    why: str
    place: str
    thread: str


@contextmanager
def noting_waits() -> Iterator[list[Wait]]:
    """The list grows by every wait of any thread of this process until the block ends."""
    found: list[Wait] = []
    _listening.append(found)
    try:
        yield found
    finally:
        _listening.remove(found)


def note_wait(why: str) -> None:
    if not _listening:
        return
    wait = Wait(why, _place(), threading.current_thread().name)
    for found in _listening:
        found.append(wait)


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if (not name.startswith(_OWN) or name.startswith(_TESTS)) and "/torch/" not in name:
            path = Path(name)
            shown = path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else Path(*path.parts[-3:])
            return f"{shown}:{frame.f_lineno}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"
