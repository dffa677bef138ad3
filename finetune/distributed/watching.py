"""Start the ranks of a launch, watch them, and report how they ended. No torch here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.distributed.failure import clear_failures
from finetune.distributed.launch import Launch, free_port
from finetune.distributed.rank_ends import killed_rank, unexplained, was
from finetune.distributed.rank_processes import RankProcesses
from finetune.distributed.rendezvous import private_folder
from finetune.distributed.stop_signals import Interrupts, signals_handled
from finetune.errors import EXIT_STOPPED, FinetuneError, Stopped, TrainingFailed
from finetune.units import format_number

GRACE_SECONDS = 3.0  # from the first failure to the end of every rank
# From a request to stop, or the last byte of the checkpoint that follows, to the end of every rank.
STOP_SECONDS = 120.0
LOOK_SECONDS = 1.0  # between looks at a checkpoint that is written
HALTED_SECONDS = 5.0  # between looks for ranks that are halted
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
    meanwhile = notify_meanwhile or notify
    interrupts = Interrupts(meanwhile, ends_at_once=ends_at_once)
    with signals_handled(interrupts.note), private_folder(logs) as private, (logs / "launcher.log").open("ab") as log:
        ranks = RankProcesses(launch, launch.meet_at(port, logs, private), log)
        watcher = Watcher(ranks, interrupts, meanwhile)
        try:
            ranks.start(wanted=lambda: not interrupts.count)
            watcher.wait()
        finally:
            ranks.kill()  # nothing, unless a rank could not be started
        error = watcher.outcome()
    if not (interrupts.aborted or interrupts.stopped) and (dead := ranks.dead()):
        tell_dead(dead)
    if interrupts.aborted:
        raise KeyboardInterrupt
    if error is not None:
        raise error


class Watcher:
    """Waits for ranks: how long, when one has failed or they were asked to stop, and what came of them.

    overdue: ranks that did not end in time after they were asked to.
    """

    def __init__(
        self,
        ranks: RankProcesses,
        interrupts: Interrupts,
        notify: Callable[[str], None],
        waits: str = "all ranks wait for it",
    ) -> None:
        """waits: what a process that is halted holds up."""
        self.ranks, self.interrupts, self.notify, self.waits = ranks, interrupts, notify, waits
        self.logs = ranks.rendezvous.logs
        self.overdue: list[int] = []
        self._deadline = float("inf")
        self._progress: tuple[float, Any] = (0.0, None)  # when it was last seen, and what was seen
        self._looked = 0.0
        self._halted: dict[int, str] = {}  # process -> what it is, at the last look
        self._told_halted: set[int] = set()

    def wait(self) -> None:
        """Until no process of the launch is left."""
        while not self.is_over():
            time.sleep(POLL_SECONDS)
        self.ranks.kill()

    def is_over(self) -> bool:
        """Look at the ranks: whether all have ended, or those that are left have had their time. Call it again and again."""
        if self.interrupts.aborted or self.interrupts.stopped:
            return True
        if self.interrupts.count:
            self.ranks.ask_to_stop(self.notify)
        if self.ranks.note_ends():
            return True
        self._tell_halted()
        if self.interrupts.count and self._is_overdue():
            self.overdue = self.ranks.running()
            return True
        self._deadline = min(self._deadline, time.monotonic() + self._patience())
        return time.monotonic() > self._deadline

    def outcome(self) -> FinetuneError | None:
        """The error of the rank that failed first, if one failed. What a rank reports goes before how it ended."""
        failures, ends = self.ranks.failures(), self.ranks.ends
        if self.interrupts.stopped:
            return Stopped("stopped on request; run the same command to resume")
        if failures and not failures[0].echo:
            return failures[0].to_error()
        if self.overdue:
            return TrainingFailed(
                f"did not end within {STOP_SECONDS:.0f} s of {self.interrupts.signal}, and {was(self.overdue)} killed",
                where=", ".join(f"rank {rank}" for rank in self.overdue),
                remedy=self.ranks.launch.again,
            )
        killed = killed_rank(ends, self.ranks.launch.again)
        if self.interrupts.count and (killed is not None or not self.ranks.started):
            return Stopped("stopped while the processes were starting; run the same command to resume")
        if killed is not None:
            return killed
        if failures:
            return failures[0].to_error()
        bad = [code for code in ends.values() if code]
        return unexplained(bad[0], self.logs, self.ranks.said_from) if bad else None

    def _patience(self) -> float:
        """Seconds that the other ranks have from now on; they cannot go on without one that failed."""
        codes = [code for code in self.ranks.ends.values() if code]
        if any(code != EXIT_STOPPED for code in codes):
            return GRACE_SECONDS
        if any(failure.exit_code != EXIT_STOPPED for failure in self.ranks.failures()):
            return GRACE_SECONDS
        return STOP_SECONDS if codes else float("inf")

    def _tell_halted(self) -> None:
        """Say once of each process that it is halted, if two looks find it so: nothing else would tell why all wait."""
        if self.interrupts.count or time.monotonic() - self._looked < HALTED_SECONDS:
            return
        self._looked = time.monotonic()
        before, self._halted = self._halted, self.ranks.halted()
        self._told_halted &= set(self._halted)
        for process in (self._halted.keys() & before.keys()) - self._told_halted:
            halted = f"{self._halted[process]} is halted (SIGSTOP), and {self.waits}"
            self.notify(f"{halted}; to continue it: kill -CONT {process}")
            self._told_halted.add(process)

    def _is_overdue(self) -> bool:
        """Whether ranks had their time since they were asked to stop, and since a checkpoint last grew."""
        now = time.monotonic()
        if self._progress[1] is None or now - self._looked > LOOK_SECONDS:
            self._looked, seen = now, _written(self.logs.parent / "checkpoints")
            if seen != self._progress[1]:
                self._progress = (now, seen)
        return now - self._progress[0] > STOP_SECONDS


def _written(checkpoints: Path) -> list[tuple[str, int]]:
    """Names and bytes of the checkpoints that are being written, and names of the others."""
    found = []
    for folder in sorted(checkpoints.glob("step-*")):
        with suppress(OSError):
            files = folder.iterdir() if folder.suffix else ()
            found.append((folder.name, sum(file.stat().st_size for file in files)))
    return found
