"""Work on chunks of rows by several processes. Results come in the order of the chunks, whatever number of workers made them.

The parent hands out chunks, each worker computes one at a time, and what it returns travels through a pipe. Nothing is
decided by which worker was faster, so the results are the same for any number of workers. A worker that dies (a system that
is out of memory kills it) does not take the others along: its chunk is computed again, alone, a row at a time, so that the row
that ends a worker is found and becomes a bad row. The workers end with the parent, however it ends.

Workers are forked where this process has one thread, so they start in milliseconds with everything that is loaded already.
A process with several threads must not be forked; then they are spawned, and the job is sent to them. A job that cannot be
sent is done by this process alone.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from finetune.data.prepare.memory import limit_memory, worker_bytes
from finetune.ending import die_with_parent, end_process
from finetune.errors import TrainingFailed
from finetune.recipe.machine import cause_of_signal

Chunk = tuple[int, int]  # [first, last) of the units of a job, such as rows or bytes

MIN_CHUNKS = 2  # for each worker, or fewer are started
AHEAD = 3  # chunks that a worker has at a time: the one it computes, and the next
BUFFERED = 8  # chunks per worker that may be ahead of the slowest one
# Threads of libraries that prepare themselves for a fork: the allocator of pyarrow.
FORK_SAFE = {"jemalloc_bg_thd"}
ALONE_DEATHS = 3  # of workers that computed one chunk alone, before the whole work is given up


class Job(Protocol):
    """Work that is divided into chunks. Picklable where this process has several threads."""

    def run(self, chunk: Chunk) -> Any:
        """The result of a chunk: a picklable value."""
        ...

    def describe(self, chunk: Chunk) -> str:
        """Where the chunk is, for people: "train.jsonl:257 to train.jsonl:512"."""
        ...


class DivisibleJob(Job, Protocol):
    """A job whose chunks can be computed a unit at a time, to find the unit that ends its worker."""

    def lost(self, chunk: Chunk, why: str) -> Any:
        """The result of a chunk of one unit that ends its worker, such as a bad row."""
        ...

    def join(self, results: Sequence[Any]) -> Any:
        """The result of a chunk from those of its units."""
        ...


@dataclass
class _Failed:
    """An exception in a worker, with its traceback as text."""

    error: BaseException
    trace: str

    def reraise(self) -> None:
        self.error.add_note(f"in a worker process:\n{self.trace}")
        raise self.error


@dataclass
class _Worker:
    process: Any
    connection: Connection
    chunks: deque[int] = field(default_factory=deque)  # handed to it, oldest first


def map_chunks(job: Job, chunks: Sequence[Chunk], *, workers: int) -> Iterator[tuple[Chunk, Any]]:
    """(chunk, result) for each chunk, in order. An exception in a worker is raised at the turn of its chunk.

    When the iterator is closed or an exception passes through, all workers have ended.
    Raises: TrainingFailed where workers die again and again.
    """
    workers = min(workers, len(chunks) // MIN_CHUNKS)
    if workers <= 1 or not (_may_fork() or can_be_sent(job)):
        for chunk in chunks:
            yield chunk, job.run(chunk)
        return
    pool = _Pool(job, chunks, workers)
    try:
        yield from pool.results()
    finally:
        pool.kill()


class _Pool:
    """The workers, what each has, and results that wait for their turn."""

    def __init__(self, job: Job, chunks: Sequence[Chunk], count: int) -> None:
        self.job, self.chunks, self.count = job, chunks, count
        self.memory = worker_bytes(count)
        self.context = multiprocessing.get_context("fork" if _may_fork() else "spawn")
        self.todo = deque(range(len(chunks)))
        self.suspects: list[int] = []  # chunks whose worker died
        self.done: dict[int, Any] = {}
        self.crew: list[_Worker] = []

    def results(self) -> Iterator[tuple[Chunk, Any]]:
        for index, chunk in enumerate(self.chunks):
            while index not in self.done:
                self._advance(index)
            result = self.done.pop(index)
            if isinstance(result, _Failed):
                result.reraise()
            yield chunk, result

    def _advance(self, turn: int) -> None:
        """Hand out chunks, and take the next results. turn: the chunk whose result is needed first."""
        if self.suspects and not any(worker.chunks for worker in self.crew):
            self.kill()  # so that all memory is there for it
            for index in sorted(self.suspects):
                self.done[index] = self._run_alone(self.chunks[index])
            self.suspects.clear()
            return
        if not self.suspects:
            while len(self.crew) < min(self.count, len(self.todo)):
                self.crew.append(self._start())
            self._hand_out(turn)
        ready = wait([worker.connection for worker in self.crew])
        for worker in [worker for worker in self.crew if worker.connection in ready]:
            self._receive(worker)

    def _hand_out(self, turn: int) -> None:
        for _ in range(AHEAD):
            for worker in self.crew:
                if len(worker.chunks) < AHEAD and self.todo and self.todo[0] - turn < BUFFERED * self.count:
                    index = self.todo.popleft()
                    worker.chunks.append(index)
                    with suppress(OSError):  # it has died: found when its end of the pipe is read
                        worker.connection.send(self.chunks[index])

    def _receive(self, worker: _Worker) -> None:
        """Take one result of a worker; or note that it has died."""
        try:
            result = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        self.done[worker.chunks.popleft()] = result

    def _bury(self, worker: _Worker) -> None:
        """The chunk that a dead worker had begun is suspect; the next one goes back."""
        self.crew.remove(worker)
        _end(worker)
        if worker.chunks:
            self.suspects.append(worker.chunks.popleft())
        for index in reversed(worker.chunks):
            self.todo.appendleft(index)

    def _run_alone(self, chunk: Chunk) -> Any:
        """The result of a chunk whose worker died, computed by one new worker after the other."""
        job: Any = self.job
        divisible = hasattr(job, "lost")
        units = [(unit, unit + 1) for unit in range(*chunk)] if divisible else [chunk]
        results, deaths = [], 0
        worker = self._start()
        try:
            for unit in units:
                try:
                    worker.connection.send(unit)
                    result = worker.connection.recv()
                except (EOFError, OSError):
                    why, deaths = _how_it_ended(worker), deaths + 1
                    if not divisible or deaths > ALONE_DEATHS:
                        raise _died(job.describe(unit), why) from None
                    _end(worker)
                    worker = self._start()
                    result = job.lost(unit, f"a worker process ended while it was prepared: {why}")
                if isinstance(result, _Failed):
                    return result
                results.append(result)
        finally:
            _end(worker)
        return job.join(results) if divisible else results[0]

    def _start(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        inherited = [worker.connection for worker in self.crew] + [ours]
        close = inherited if self.context.get_start_method() == "fork" else []
        process: Any = self.context.Process(  # type: ignore[attr-defined]
            target=_work, args=(theirs, self.job, self.memory, os.getpid(), close), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def kill(self) -> None:
        """End all workers at once."""
        for worker in self.crew:
            worker.process.kill()
        for worker in self.crew:
            _end(worker)
        self.crew.clear()


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.connection.close()


def _how_it_ended(worker: _Worker) -> str:
    """How a worker ended: "killed by SIGKILL; the system may have run out of memory"."""
    worker.process.join(5)
    code = worker.process.exitcode
    if code is None or code >= 0:
        return f"it ended with code {code}"
    return f"killed by {signal.Signals(-code).name}{cause_of_signal(-code)}"


def _died(where: str, why: str) -> TrainingFailed:
    return TrainingFailed(
        f"worker processes that prepare the data keep dying ({why})",
        where=where,
        remedy="Check these rows and the memory of the machine; fewer workers need less: finetune prepare RECIPE --workers 1.",
    )


def _may_fork() -> bool:
    """Whether this process has one thread, so that a fork of it has no lock that nobody will release."""
    if sys.platform != "linux":
        return False
    names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return len([name for name in names if name not in FORK_SAFE]) == 1


def can_be_sent(work: Any) -> bool:
    """Whether a process that is not forked from this one can be given it."""
    try:
        pickle.dumps(work)
    except Exception:  # of many types: a lambda, an open file, a lock
        return False
    return True


def _work(connection: Connection, job: Job, memory: int, parent: int, close: Sequence[Connection]) -> None:
    """A worker's life: chunks in, results out, until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with(parent)
    os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    for other in close:
        other.close()
    limit_memory(memory)
    gc.freeze()  # what was there before the fork is not looked at, so its pages stay shared
    try:
        while True:
            connection.send(_result(job, connection.recv()))
    except (EOFError, OSError):
        pass
    finally:
        end_process(0)  # nothing of what the parent had registered for its own end


def _result(job: Job, chunk: Chunk) -> Any:
    try:
        return job.run(chunk)
    except BaseException as error:
        failed = _Failed(error, traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(failed))
        except Exception:  # an exception of a library that does not survive
            return _Failed(RuntimeError(f"{type(error).__name__}: {error}"), failed.trace)
        return failed


def _die_with(parent: int) -> None:
    """Linux: this process is killed when its parent ends."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        end_process(1)
