"""The process beside rank 0 that reads the input and writes the output, so that no rank's Python lock is taken for it.

It holds at most OPEN_WINDOWS windows at a time: the next one is read when the oldest is in the output, whatever the number
of rows. It tells rank 0 of each window, and hears from it how many chunks of which window are answered.

    to rank 0: ("window", FedWindow) ("progress", State) ("note", text) ("end", chunks) ("finished", State) ("failed", error)
    from it:   ("done", window, chunks answered in this launch)
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from finetune.data.prepare.pool import can_be_sent
from finetune.ending import die_with_parent, end_process
from finetune.errors import FinetuneError, Halted, TrainingFailed
from finetune.inference.prediction.collector import Collector
from finetune.inference.prediction.feeder import FedWindow, Feeder
from finetune.inference.prediction.state import State

OPEN_WINDOWS = 4
TOO_MANY = "too many rows have no answer"

MakeParts = Callable[[], tuple[Feeder, Collector]]


class Keeper:
    """The loop of the process. send, poll, receive: of its connection to rank 0. max_errors: None: any number."""

    def __init__(self, feeder: Feeder, collector: Collector, connection: Any, max_errors: int | None) -> None:
        self.feeder, self.collector, self.connection, self.max_errors = feeder, collector, connection, max_errors
        self.open: deque[FedWindow] = deque()
        self.started, self.before = time.monotonic(), collector.state.seconds

    def run(self) -> None:
        """Until all rows are in the output. Raises: Halted for what cannot go on."""
        windows = self.feeder.windows()
        chunks, more = 0, True
        self._check_errors()
        while more or self.open:
            fed = more and len(self.open) < OPEN_WINDOWS
            if fed:
                window = next(windows, None)
                if window is None:
                    more = False
                    self.connection.send(("end", chunks))
                else:
                    chunks += len(window.todo)
                    self.open.append(window)
                    self.connection.send(("window", window))
            if not self._collect() and not fed:
                self._listen(0.2)
            else:
                self._listen(0)
        for line in (*self.feeder.asked.stream.notes, *self.feeder.notes()):
            self.connection.send(("note", line))
        self.collector.finish()
        self.connection.send(("finished", self._state()))

    def _listen(self, seconds: float) -> None:
        while self.connection.poll(seconds):
            _, number, done = self.connection.recv()
            for window in self.open:
                if window.number == number:
                    window.done = done
            seconds = 0

    def _collect(self) -> bool:
        """Append the oldest window if it is done. Whether it was."""
        if not self.open or not self.open[0].is_done:
            return False
        self.collector.state.seconds = self.before + time.monotonic() - self.started
        self.collector.collect(self.open.popleft())
        self.connection.send(("progress", self._state()))
        self._check_errors()
        return True

    def _state(self) -> State:
        return replace(self.collector.state)

    def _check_errors(self) -> None:
        failed = self.collector.state.failed
        if self.max_errors is not None and failed > self.max_errors:
            raise Halted(
                f"{TOO_MANY}: {self.collector.state.failed_kinds}; --max-errors is {self.max_errors:,}",
                where=str(self.collector.parts.output),
                remedy="See the errors in the output. The same command with a larger --max-errors goes on from here.",
            )


def start_keeper(make: MakeParts, max_errors: int | None, *, apart: bool) -> tuple[Any, Connection]:
    """(process, connection to it). make: called in the process.

    apart: where this process has several threads, it must not be forked: a new process gets `make` in a pickle. False: a
    thread of this one, for input that cannot be handed on.
    """
    forks = _is_single_threaded()
    context = multiprocessing.get_context("fork" if forks else "spawn")
    ours, theirs = context.Pipe()
    if not forks and not (apart and can_be_sent(make)):
        thread = threading.Thread(target=_keep, args=(theirs, make, max_errors), name="keeper", daemon=True)
        thread.start()
        return thread, ours
    inherited = [ours] if forks else []
    process: Any = context.Process(target=_work, args=(theirs, make, max_errors, inherited), name="keeper")  # type: ignore[attr-defined]
    stdin, sys.stdin = sys.stdin, None  # type: ignore[assignment]  # or multiprocessing closes it, and what was read of it
    try:
        process.start()
    finally:
        sys.stdin = stdin
    theirs.close()
    return process, ours


def _work(connection: Connection, make: MakeParts, max_errors: int | None, inherited: list[Any]) -> None:
    """The life of the process. It ends with rank 0, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; rank 0 decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()
    for other in inherited:
        other.close()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.freeze()  # what was there before the fork is not looked at, so its pages stay shared
    try:
        _keep(connection, make, max_errors)
    finally:
        end_process(0)


def _keep(connection: Connection, make: MakeParts, max_errors: int | None) -> None:
    try:
        feeder, collector = make()
        Keeper(feeder, collector, connection, max_errors).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # rank 0 has ended
    except BaseException as error:
        with suppress(OSError):
            connection.send(("failed", _reported(error)))


def _is_single_threaded() -> bool:
    tasks = Path("/proc/self/task")
    return tasks.is_dir() and len(list(tasks.iterdir())) == 1


def _reported(error: BaseException) -> FinetuneError:
    """The error as rank 0 raises it; the traceback of one that nobody expected goes to the log."""
    if isinstance(error, FinetuneError):
        return error
    traceback.print_exc()
    return TrainingFailed(f"{type(error).__name__}: {error}", where="the process that reads and writes")
