"""The end of a process that may not return: what is registered here runs first, and nothing of it can hold the process up.

The destructors of NCCL and gloo wait for peers that are gone, threads of a model that broke never end, and a forked process
would run what its parent registered for its own end. Such processes end by `end_process`; nothing else calls os._exit.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from finetune.errors import EXIT_INTERRUPTED

SECONDS = 5.0  # after which the endings that are left run beside one that hangs, and the process ends


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


_endings: list[tuple[int, Callable[[], object]]] = [(0, _flush)]  # process that registered it (0: each), what it does


@contextmanager
def ending(call: Callable[[], object]) -> Iterator[None]:
    """`call` once, at the end of the block or of this process, whichever comes first. Not in a fork of this process."""
    entry = (os.getpid(), call)
    _endings.append(entry)
    try:
        yield
    finally:
        with suppress(ValueError):
            _endings.remove(entry)
            call()


def end_process(code: int) -> NoReturn:
    """End this process now, with the endings registered last first. code: of the exit; minus a signal: be ended by that."""
    with suppress(RuntimeError):  # no thread can be started: nothing limits the endings
        _thread.start_new_thread(_end_late, (code,))  # takes no lock that what a signal interrupted may hold
    while _endings:
        owner, call = _endings.pop()
        if owner in (0, os.getpid()):
            with suppress(BaseException):  # the process ends for another reason, which is what counts
                call()
    if code < 0:
        os.kill(os.getpid(), -code)
        time.sleep(1)
    os._exit(abs(code))


def _end_late(code: int) -> None:
    """Go on with the next ending when one hangs."""
    time.sleep(SECONDS)
    end_process(code)


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Linux: this process gets the signal when its parent is gone. By SIGTERM a rank that is left alone saves and stops."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, number)


@contextmanager
def ended_by(*numbers: signal.Signals) -> Iterator[None]:
    """Inside, these signals end this process as they do by default, or by Python's default, but through `end_process`.

    For the time in which there is nothing to save. Around imports it keeps a KeyboardInterrupt out of code that turns it into
    another error, or loses it. Only signals that nothing else handles yet.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    plain = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler in plain}
    for number in before:
        signal.signal(number, _end_by_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _end_by_signal:
                signal.signal(number, handler)


def _end_by_signal(number: int, frame: FrameType | None) -> NoReturn:
    if number == signal.SIGINT:
        with suppress(OSError):
            os.write(2, b"interrupted\n")
        end_process(EXIT_INTERRUPTED)
    signal.signal(number, signal.SIG_DFL)
    end_process(-number)
