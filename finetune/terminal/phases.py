"""The phases of a start: named while they last if they take long, and listed with their seconds afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from finetune.terminal.lines import print_line

LEAST_SECONDS = 0.1  # of a phase that is listed
_BEGAN = time.monotonic()
_PHASES: list[tuple[str, float]] = []  # of this process, in the order in which they ended


@contextmanager
def phase(text: str, tell: Callable[[str], None] = print_line, *, after: float = 1.0) -> Iterator[None]:
    """Tells `text` if what happens inside takes longer than `after` seconds, once they have passed: what is quick is silent.

    `phases_told` lists its seconds. When it has ended, its thread has ended, too: the process can be forked.
    """
    timer = threading.Timer(after, tell, [text])
    timer.daemon = True
    timer.start()
    began = time.monotonic()
    try:
        yield
    finally:
        _PHASES.append((text, time.monotonic() - began))
        timer.cancel()
        timer.join()


def phases_told() -> str:
    """How long this process took so far, and its phases: "4.3 s (importing libraries 2.9 s, loading the model 0.8 s)".

    What took less than a tenth of a second is left out. A forked process counts from the start of the one it was forked from.
    """
    parts = [f"{text} {seconds:.1f} s" for text, seconds in _PHASES if seconds >= LEAST_SECONDS]
    return f"{time.monotonic() - _BEGAN:.1f} s" + (f" ({', '.join(parts)})" if parts else "")
