"""The phases of a start: named while they last if they take long, and listed with their seconds afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from finetune.terminal.lines import print_line

LEAST_SECONDS = 0.1  # of a phase that is listed
_BEGAN = time.monotonic()
_PHASES: list[tuple[str, float]] = []  # of this process, in the order in which they ended, without those inside
_INSIDE: list[float] = []  # for each phase that lasts: seconds of the phases inside it that have ended


@contextmanager
def phase(text: str, tell: Callable[[str], None] = print_line, *, after: float = 1.0) -> Iterator[None]:
    """Tells `text` if what happens inside takes longer than `after` seconds, once they have passed: what is quick is silent.

    `phases_told` lists its seconds. When it has ended, its thread has ended, too: the process can be forked.
    """
    timer = threading.Timer(after, tell, [text])
    timer.daemon = True
    timer.start()
    began = time.monotonic()
    _INSIDE.append(0.0)
    try:
        yield
    finally:
        seconds = time.monotonic() - began
        _PHASES.append((text, seconds - _INSIDE.pop()))
        if _INSIDE:
            _INSIDE[-1] += seconds
        timer.cancel()
        timer.join()


def phases_told() -> str:
    """How long this process took so far, and its phases: "4.3 s (importing libraries 2.9 s, loading the model 0.8 s, other
    0.6 s)".

    What took less than a tenth of a second is left out; a phase inside another one is not counted twice. A forked process
    counts from the start of the one it was forked from.
    """
    took = time.monotonic() - _BEGAN
    phases = [*_PHASES, ("other", took - sum(seconds for _, seconds in _PHASES))]
    parts = [f"{text} {seconds:.1f} s" for text, seconds in phases if seconds >= LEAST_SECONDS]
    return f"{took:.1f} s" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")
