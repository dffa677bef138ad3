"""One launch per replica, and one for a reader that gives out the work and outlives them: a replica that fails is ended alone,
and started again alone, while the others work. No torch here.

Every launch has a mark and a private folder of its own, in which its ranks meet; what all processes share is a FolderStore.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import FrameType
from typing import IO

from finetune.distributed.failure import clear_failures
from finetune.distributed.launch import Launch, Rendezvous, free_port
from finetune.distributed.rank_processes import RankProcesses
from finetune.distributed.rendezvous import private_folder
from finetune.distributed.replica_place import READER, ReplicaPlace
from finetune.distributed.stop_signals import Interrupts, signals_handled
from finetune.distributed.watching import POLL_SECONDS, Watcher
from finetune.errors import FinetuneError, Stopped, TrainingFailed
from finetune.recipe.quotas import THREADS, threads_each

LEAVE_SECONDS = 1.0  # that ranks have to end after the reader, which has waited for all that it needs of them


class Decision(Enum):
    """On a replica that failed. NOT_NEEDED: all work is done."""

    RESTART = auto()
    GIVE_UP = auto()
    NOT_NEEDED = auto()


class NoReplicaLeft(TrainingFailed):
    """Every replica failed, and none may be started again."""


@dataclass(frozen=True, kw_only=True)
class ReplicaLaunch(Launch):
    """The ranks of one replica, or the reader. gpus: names of those that each rank sees, as in CUDA_VISIBLE_DEVICES; none: the
    variable stays as it is.
    """

    place: ReplicaPlace
    gpus: Sequence[str] = ()

    def environment(self, rank: int, rendezvous: Rendezvous) -> dict[str, str]:
        env = super().environment(rank, rendezvous) | self.place.as_environ()
        if THREADS not in os.environ:  # cores are shared with the other replicas
            env[THREADS] = str(threads_each(self.place.ranks))
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        return env


@dataclass(frozen=True)
class ReplicaPlan:
    """What is started. size: ranks of a replica; gpus: all that may be used, in equal parts for the replicas; none on a CPU."""

    arguments: Sequence[str]
    size: int
    replicas: int
    gpus: Sequence[str] = ()

    def reader(self, folder: Path) -> ReplicaLaunch:
        """The launch of the process that reads; folder: where it and the replicas meet."""
        place = ReplicaPlace(READER, self.size, self.replicas, 0, str(folder))
        return self._launch(1, place, ())

    def replica(self, number: int, attempt: int, folder: Path) -> ReplicaLaunch:
        """The launch of one replica. attempt: how often it was started before."""
        each = len(self.gpus) // self.replicas
        place = ReplicaPlace(number, self.size, self.replicas, attempt, str(folder))
        return self._launch(self.size, place, self.gpus[number * each : (number + 1) * each])

    def _launch(self, processes: int, place: ReplicaPlace, gpus: Sequence[str]) -> ReplicaLaunch:
        cpu = not self.gpus
        return ReplicaLaunch(self.arguments, processes, False, cpu, first=place.first, place=place, gpus=gpus)


@dataclass(frozen=True)
class FailedReplica:
    """error: of the rank that failed first. dead: ranks that a signal ended which nobody here sent."""

    number: int
    attempt: int
    error: FinetuneError
    dead: Sequence[int]


def run_replicas(
    plan: ReplicaPlan,
    logs: Path,
    folder: Path,
    decide: Callable[[FailedReplica], Decision],
    notify: Callable[[str], None],
) -> None:
    """Until the reader has ended. folder: of the FolderStore, empty.

    decide: called for a replica that failed, when none of its processes is left. notify: with lines for the user.
    The first signal ends everything.
    Raises: the error of the reader, or of a rank that a restart does not help (a mistake of the user, a full disk);
    NoReplicaLeft; Stopped and KeyboardInterrupt for signals.
    """
    logs.mkdir(parents=True, exist_ok=True)
    clear_failures(logs)
    with (logs / "launcher.log").open("ab") as log, ExitStack() as stack:
        running = _Replicas(plan, logs, folder, log, stack, decide, notify)
        stack.enter_context(signals_handled(running.note_signal))  # until the private folders are removed
        try:
            running.start()
            running.watch()
        finally:
            running.kill()


class _Replicas:
    """Those that run now, with the reader."""

    def __init__(
        self,
        plan: ReplicaPlan,
        logs: Path,
        folder: Path,
        log: IO[bytes],
        stack: ExitStack,
        decide: Callable[[FailedReplica], Decision],
        notify: Callable[[str], None],
    ) -> None:
        self.plan, self.logs, self.folder, self.decide = plan, logs, folder, decide
        self._log, self._stack, self._notify = log, stack, notify
        self._signal = 0
        self._reader: Watcher | None = None
        self._running: dict[int, tuple[int, Watcher]] = {}  # replica -> attempt, who watches its ranks

    def start(self) -> None:
        self._reader = self._watched(self.plan.reader(self.folder))
        for number in range(self.plan.replicas):
            self._start(number, 0)

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        self._signal = self._signal or number

    def watch(self) -> None:
        """Until the reader has ended, see run_replicas."""
        assert self._reader is not None, "start comes first"
        while not self._reader.is_over():
            time.sleep(POLL_SECONDS)
            self._raise_signal()
            for number, (attempt, watcher) in list(self._running.items()):
                if watcher.is_over():
                    self._end(number, attempt, watcher)
        self._reader.ranks.kill()
        if (error := self._reader.outcome()) is not None:
            raise error
        ends = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < ends and not all(watcher.is_over() for _, watcher in self._running.values()):
            time.sleep(POLL_SECONDS)
            self._raise_signal()

    def kill(self) -> None:
        """Whatever is left."""
        for watcher in filter(None, (self._reader, *(watcher for _, watcher in self._running.values()))):
            watcher.ranks.kill()

    def _raise_signal(self) -> None:
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal:
            raise Stopped("stopped on request; run the same command to resume")

    def _end(self, number: int, attempt: int, watcher: Watcher) -> None:
        """Of a replica whose ranks have ended, or had their time."""
        watcher.ranks.kill()
        del self._running[number]
        error = watcher.outcome()
        if error is None:
            return
        if not isinstance(error, TrainingFailed):
            raise error
        decision = self.decide(FailedReplica(number, attempt, error, watcher.ranks.dead()))
        if decision is Decision.RESTART:
            self._start(number, attempt + 1)
        elif decision is Decision.GIVE_UP and not self._running:
            what = f"no replica is left; the last one: {error.what}"
            raise NoReplicaLeft(what, where=error.where, remedy=error.remedy, kind=error.kind)

    def _start(self, number: int, attempt: int) -> None:
        launch = self.plan.replica(number, attempt, self.folder)
        clear_failures(self.logs, range(launch.first, launch.first + launch.processes))
        self._running[number] = attempt, self._watched(launch)

    def _watched(self, launch: ReplicaLaunch) -> Watcher:
        private = self._stack.enter_context(private_folder(self.logs))
        ranks = RankProcesses(launch, launch.meet_at(free_port(), self.logs, private), self._log)
        try:
            ranks.start()
        except BaseException:
            ranks.kill()
            raise
        return Watcher(ranks, Interrupts(lambda line: None), self._notify, waits="its part of the work waits for it")


def visible_gpus(count: int) -> list[str]:
    """The names of the first `count` GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(count)] if visible is None else visible.split(",")
    return [name.strip() for name in names if name.strip()][:count]


def describe_replica(number: int, size: int) -> str:
    """For messages: "replica 1 (ranks 2 and 3)", "replica 1 (rank 1)"."""
    first, last = number * size, (number + 1) * size - 1
    ranks = f"rank {first}" if size == 1 else f"ranks {first} and {last}" if size == 2 else f"ranks {first} to {last}"
    return f"replica {number} ({ranks})"
