"""The keyboard of a conversation: Ctrl-C is never lost, keys that are typed during a reply are not shown in it, and the
terminal is given back as it was, however the program ends.

Python looks for signals between two bytecodes. One that comes after the last look and before the system call that waits for
a key is noticed at the next key only: at a prompt, Ctrl-C would do nothing. So a thread watches for signals that the main
thread has not noticed, and interrupts its system call by another signal, which does nothing else. That signal has a handler
in C, not in Python: `input` runs handlers again while the exception of the first is already set, which is an error of its own.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

PATIENCE_SECONDS = 0.05  # until a signal that the main thread has not noticed is repeated
NUDGE = signal.SIGURG  # ignored by default, and sent by nobody here
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Keyboard:
    """A context on the main thread. Without a terminal on stdin it does nothing.

    Inside it, SIGINT raises KeyboardInterrupt within a moment, whatever the main thread waits for. SIGTERM, SIGHUP and
    SIGQUIT give the terminal back before they end the process as they do by default.
    """

    def __init__(self) -> None:
        self._modes: list[Any] | None = None  # of the terminal, as they were
        self._before: dict[signal.Signals, Any] = {}
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Keyboard:
        if not sys.stdin.isatty():
            return self
        with suppress(termios.error):
            self._modes = termios.tcgetattr(sys.stdin.fileno())
        ours, written = self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(False)
        handlers = {signal.SIGINT: self._interrupt, **dict.fromkeys(ENDING, self._end)}
        self._before = {NUDGE: signal.getsignal(NUDGE) or signal.SIG_DFL}
        self._before |= {number: signal.signal(number, handler) for number, handler in handlers.items()}
        _handle_by_nothing(NUDGE)
        signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, args=(ours,), name="keyboard", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ends is None or self._thread is None:
            return
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        ours, written = self._ends
        self._notice()
        written.close()  # ends the thread
        self._thread.join()
        ours.close()
        self._ends = None
        self._restore()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """A context in which the terminal does not show what is typed. It is read at the next prompt."""
        if self._modes is not None:
            modes = termios.tcgetattr(sys.stdin.fileno())
            modes[3] &= ~(termios.ECHO | termios.ECHONL)
            self._set(modes)
        try:
            yield
        finally:
            self._restore()

    def _restore(self) -> None:
        if self._modes is not None:
            self._set(self._modes)

    @staticmethod
    def _set(modes: list[Any]) -> None:
        with suppress(termios.error):  # the terminal is closed
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, modes)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._notice()
        raise KeyboardInterrupt

    def _notice(self) -> None:
        """Empties what the system wrote for the signals so far: all of their handlers are run now."""
        if self._ends is not None:
            with suppress(OSError):
                while self._ends[0].recv(4096):
                    pass

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        with suppress(OSError):
            os.write(2, f"\nended by {signal.Signals(number).name}\n".encode())
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    @staticmethod
    def _watch(ours: socket.socket) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while True:
            select.select([ours], [], [])
            time.sleep(PATIENCE_SECONDS)
            if not select.select([ours], [], [], 0)[0]:
                continue  # the main thread has noticed it
            with suppress(BlockingIOError):
                if not ours.recv(1, socket.MSG_PEEK):
                    return  # the context has ended
            signal.pthread_kill(main, NUDGE)


def _handle_by_nothing(number: signal.Signals) -> None:
    """Makes a signal interrupt system calls and do nothing else: its handler is a C function of an integer without effect."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(number, ctypes.cast(libc.abs, ctypes.c_void_p))
    signal.siginterrupt(number, True)
