"""Start the ranks of a launch, watch them, and report how they ended. No torch here."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from finetune.distributed.failure import Failure, clear_failures, read_failures
from finetune.distributed.forking import ForkedRank, fork_ranks
from finetune.distributed.launch import LAUNCH, PROGRAM, Launch, free_port
from finetune.distributed.meeting import ADDRESS, private_folder
from finetune.distributed.rank_ends import killed_rank, unexplained, was
from finetune.distributed.stop_signals import signals_handled
from finetune.distributed.temporary_folder import remove_shared_memory
from finetune.ending import die_with_parent
from finetune.errors import EXIT_STOPPED, FinetuneError, Stopped, TrainingFailed
from finetune.units import format_number

GRACE_SECONDS = 3.0  # from the first failure to the end of every rank
# From a request to stop, or the last byte of the checkpoint that follows, to the end of every rank.
STOP_SECONDS = 120.0
LOOK_SECONDS = 1.0  # between looks at a checkpoint that is written
POLL_SECONDS = 0.1


def run_workers(
    launch: Launch,
    logs: Path,
    notify: Callable[[str], None],
    *,
    notify_meanwhile: Callable[[str], None] | None = None,
    ends_at_once: bool = False,
    tell_dead: Callable[[Sequence[int]], None] = lambda ranks: None,
) -> None:
    """Run to the end. Raises: the first failing rank's error, in this process; Stopped if it stopped on request.

    Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP are passed on to the ranks, which save and stop; a second Ctrl-C ends them at once.
    Ranks that have not ended STOP_SECONDS later, whatever they do, are killed; not while a checkpoint grows.
    ends_at_once: the first signal does, because the ranks have nothing to save. notify_meanwhile: in place of `notify`
    while the ranks run, which may show something live in the terminal. tell_dead: called, when no process is left, with the
    ranks that a signal ended which this process did not send, such as a fault of memory or the OOM killer's.
    """
    logs.mkdir(parents=True, exist_ok=True)
    clear_failures(logs)
    port = free_port()
    notify(f"starting {format_number(launch.processes, 'rank')}, as: {launch.equivalent(port)}")
    watcher = Watcher(launch, logs, notify_meanwhile or notify, ends_at_once=ends_at_once)
    with signals_handled(watcher.pass_on), private_folder(logs) as private, (logs / "launcher.log").open("ab") as log:
        try:
            watcher.start(port, log, private)
            watcher.wait()
        finally:
            watcher.kill()  # nothing, unless a rank could not be started
        error = watcher.outcome()
    if not (watcher.aborted or watcher.stopped) and (dead := watcher.dead()):
        tell_dead(dead)
    if watcher.aborted:
        raise KeyboardInterrupt
    if error is not None:
        raise error


class Watcher:
    """Starts the ranks, waits for them, and ends what is left some seconds after a first failure.

    ends: rank -> exit code, minus the signal that killed it; in the order in which they ended by themselves. Ranks count from
    launch.first. signal: the name of the first one that asked to stop. overdue: ranks that did not end in time after it.
    private: where they meet. port: see Launch.environment.
    """

    private: Path
    port = 0

    def __init__(
        self,
        launch: Launch,
        logs: Path,
        notify: Callable[[str], None],
        *,
        ends_at_once: bool = False,
    ) -> None:
        self.launch, self.logs = launch, logs
        self.notify, self.ends_at_once = notify, ends_at_once
        self.mark = launch.waiting.mark if launch.waiting and launch.waiting.count else uuid.uuid4().hex
        self.ranks: list[subprocess.Popen[bytes] | ForkedRank] = []
        self.ends: dict[int, int] = {}
        self.interrupts, self.aborted, self.stopped, self.signal = 0, False, False, ""
        self.overdue: list[int] = []
        self._deadline = float("inf")
        self._said_from = 0
        self._progress: tuple[float, Any] = (0.0, None)  # when it was last seen, and what was seen
        self._looked = 0.0
        self._asked: set[int] = set()

    def start(self, port: int, log: IO[bytes], private: Path) -> None:
        """All ranks. log: takes what they print before they have logs of their own. private: see meeting.private_folder."""
        self.port, self.private, self._said_from = port, private, log.tell()
        if self.launch.forks and self.launch.processes > 1:
            environment = self.launch.environment(0, port, self.logs, self.mark, self.private)
            self.ranks += fork_ranks(
                self.launch.command(),
                environment,
                self.launch.processes,
                log.fileno(),
                wanted=lambda: not self.interrupts,
            )
        if self.ranks or self.interrupts:
            return
        for rank in range(self.launch.processes):
            environment = self.launch.environment(rank, port, self.logs, self.mark, self.private)
            self.ranks.append(self._become(environment, log) or self._start(environment, log))

    def _become(self, environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes] | None:
        """A process that waits for that, if there is one."""
        if self.launch.waiting is None:
            return None
        return self.launch.waiting.become(self.launch.command()[len(PROGRAM) :], environment, log.fileno())

    def _start(self, environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.launch.command(),
            stderr=log.fileno(),
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def wait(self) -> None:
        """Until no process of the launch is left."""
        while not self.is_over():
            time.sleep(POLL_SECONDS)
        self.kill()

    def is_over(self) -> bool:
        """Look at the ranks: whether all have ended, or those that are left have had their time. Call it again and again."""
        if self.aborted or self.stopped:
            return True
        if self.interrupts:
            self._ask_to_stop()
        self._note_ends()
        if len(self.ends) == len(self.ranks):
            return True
        if self.interrupts and self._is_overdue():
            self.overdue = [rank for rank, _ in self._numbered() if rank not in self.ends]
            return True
        self._deadline = min(self._deadline, time.monotonic() + self._patience())
        return time.monotonic() > self._deadline

    def outcome(self) -> FinetuneError | None:
        """The error of the rank that failed first, if one failed. What a rank reports goes before how it ended."""
        failures = self._failures()
        if self.stopped:
            return Stopped("stopped on request; run the same command to resume")
        if failures and not failures[0].echo:
            return failures[0].to_error()
        if self.overdue:
            return TrainingFailed(
                f"did not end within {STOP_SECONDS:.0f} s of {self.signal}, and {was(self.overdue)} killed",
                where=", ".join(f"rank {rank}" for rank in self.overdue),
                remedy="Run the same command to resume from the last checkpoint.",
            )
        killed = killed_rank(self.ends)
        if self.interrupts and (killed is not None or not self.ranks):
            return Stopped("stopped while the processes were starting; run the same command to resume")
        if killed is not None:
            return killed
        if failures:
            return failures[0].to_error()
        bad = [code for code in self.ends.values() if code]
        return unexplained(bad[0], self.logs, self._said_from) if bad else None

    def _numbered(self) -> Iterator[tuple[int, subprocess.Popen[bytes] | ForkedRank]]:
        return enumerate(self.ranks, self.launch.first)

    def _failures(self) -> list[Failure]:
        """Of the ranks of this launch."""
        own = range(self.launch.first, self.launch.first + self.launch.processes)
        return [failure for failure in read_failures(self.logs, self.private) if failure.rank in own]

    def _note_ends(self) -> None:
        for rank, process in self._numbered():
            code = process.poll()
            if code is not None and rank not in self.ends:
                self.ends[rank] = code

    def dead(self) -> list[int]:
        """Ranks that ended without a word. SIGTERM is somebody's wish."""
        return [rank for rank, code in self.ends.items() if code < 0 and -code != signal.SIGTERM]

    def _patience(self) -> float:
        """Seconds that the other ranks have from now on; they cannot go on without one that failed."""
        codes = [code for code in self.ends.values() if code]
        if any(code != EXIT_STOPPED for code in codes):
            return GRACE_SECONDS
        if any(failure.exit_code != EXIT_STOPPED for failure in self._failures()):
            return GRACE_SECONDS
        return STOP_SECONDS if codes else float("inf")

    def kill(self) -> None:
        """SIGKILL to every process of the launch; repeated, since a dying one may have started more."""
        while family := self._family():
            for child in family:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            time.sleep(0.02)  # not psutil.wait_procs, which waits for orphans that nobody reaps
        for process in self.ranks:
            process.wait()
        remove_shared_memory(ADDRESS, self.port)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        self.interrupts += 1
        if number == signal.SIGINT and (self.interrupts > 1 or self.ends_at_once):
            self.aborted = True
        elif self.ends_at_once:
            self.stopped = True
        elif self.interrupts == 1:
            self.signal = signal.Signals(number).name
            self.notify(f"{self.signal}: saving a checkpoint, then ending (Ctrl-C: at once)")

    def _ask_to_stop(self) -> None:
        """SIGTERM to each rank, once. One that was halted goes on, so that it can save."""
        for rank, process in self._numbered():
            if rank in self._asked:
                continue
            self._asked.add(rank)
            process.send_signal(signal.SIGTERM)
            with suppress(psutil.Error):
                if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
                    self.notify(f"rank {rank} was halted (SIGSTOP): it goes on, so that it can save")
                    process.send_signal(signal.SIGCONT)

    def _is_overdue(self) -> bool:
        """Whether ranks had their time since they were asked to stop, and since a checkpoint last grew."""
        now = time.monotonic()
        if self._progress[1] is None or now - self._looked > LOOK_SECONDS:
            self._looked, seen = now, _written(self.logs.parent / "checkpoints")
            if seen != self._progress[1]:
                self._progress = (now, seen)
        return now - self._progress[0] > STOP_SECONDS

    def _family(self) -> list[psutil.Process]:
        """Every living process with this launch's mark: ranks are in sessions of their own, and may leave orphans."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(LAUNCH) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def _written(checkpoints: Path) -> list[tuple[str, int]]:
    """Names and bytes of the checkpoints that are being written, and names of the others."""
    found = []
    for folder in sorted(checkpoints.glob("step-*")):
        with suppress(OSError):
            files = folder.iterdir() if folder.suffix else ()
            found.append((folder.name, sum(file.stat().st_size for file in files)))
    return found
