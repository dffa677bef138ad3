"""The processes of one launch on this machine: started, asked to stop, ended; watching.py decides when. No torch here."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO

import psutil

from finetune.distributed.failure import Failure, read_failures
from finetune.distributed.forking import ForkedRank, fork_ranks
from finetune.distributed.halted import is_halted
from finetune.distributed.launch import LAUNCH, PROGRAM, Launch, Rendezvous
from finetune.distributed.rendezvous import ADDRESS
from finetune.distributed.replica_place import describe_rank
from finetune.distributed.temporary_folder import remove_shared_memory
from finetune.ending import die_with_parent


class RankProcesses:
    """The ranks, and whatever they start. Ranks count from launch.first.

    ends: rank -> exit code, minus the signal that killed it; in the order in which they ended by themselves.
    started: the processes, in the order of ranks. said_from: where in the log begins what this launch prints.
    """

    def __init__(self, launch: Launch, rendezvous: Rendezvous, log: IO[bytes]) -> None:
        """log: takes what ranks print before they have logs of their own."""
        self.launch, self.rendezvous = launch, rendezvous
        self.ends: dict[int, int] = {}
        self.said_from = log.tell()
        self._log = log
        self.started: list[subprocess.Popen[bytes] | ForkedRank] = []
        self._asked: set[int] = set()

    def start(self, wanted: Callable[[], bool] = lambda: True) -> None:
        """All ranks, while they are `wanted`: starting them takes a while."""
        if self.launch.forks and self.launch.processes > 1:
            self.started += fork_ranks(
                self.launch.command(),
                self.launch.environment(0, self.rendezvous),
                self.launch.processes,
                self._log.fileno(),
                wanted=wanted,
            )
        if self.started or not wanted():
            return
        for rank in range(self.launch.processes):
            environment = self.launch.environment(rank, self.rendezvous)
            self.started.append(self._become(environment) or self._start(environment))

    def _become(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
        """A process that waits for that, if there is one."""
        if self.launch.waiting is None:
            return None
        return self.launch.waiting.become(self.launch.command()[len(PROGRAM) :], environment, self._log.fileno())

    def _start(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.launch.command(),
            stderr=self._log.fileno(),
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def note_ends(self) -> bool:
        """See which ranks have ended; whether all have."""
        for rank, process in self._numbered():
            code = process.poll()
            if code is not None and rank not in self.ends:
                self.ends[rank] = code
        return len(self.ends) == len(self.started)

    def running(self) -> list[int]:
        """Those that had not ended at the last look."""
        return [rank for rank, _ in self._numbered() if rank not in self.ends]

    def dead(self) -> list[int]:
        """Ranks that ended without a word. SIGTERM is somebody's wish."""
        return [rank for rank, code in self.ends.items() if code < 0 and -code != signal.SIGTERM]

    def failures(self) -> list[Failure]:
        """What ranks of this launch reported of their ends."""
        own = range(self.launch.first, self.launch.first + self.launch.processes)
        found = read_failures(self.rendezvous.logs, self.rendezvous.private)
        return [failure for failure in found if failure.rank in own]

    def halted(self) -> dict[int, str]:
        """Processes of this launch that SIGSTOP halts: id -> what it is. Those that ranks started are among them."""
        ranks = {process.pid: rank for rank, process in self._numbered()}
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if not is_halted(process.pid) or not self._is_marked(process):
                    continue
                ancestors = [parent.pid for parent in (process, *process.parents()) if parent.pid in ranks]
                name = describe_rank(ranks[ancestors[0]]) if ancestors else "this launch"
                found[process.pid] = name if process.pid in ranks else f"process {process.pid} of {name}"
        return found

    def ask_to_stop(self, notify: Callable[[str], None]) -> None:
        """SIGTERM to each rank, once. One that was halted goes on, so that it can save."""
        for rank, process in self._numbered():
            if rank in self._asked:
                continue
            self._asked.add(rank)
            process.send_signal(signal.SIGTERM)
            if is_halted(process.pid):
                notify(f"rank {rank} was halted (SIGSTOP): it goes on, so that it can save")
                process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to every process of the launch; repeated, since a dying one may have started more."""
        while family := self._family():
            for child in family:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            time.sleep(0.02)  # not psutil.wait_procs, which waits for orphans that nobody reaps
        for process in self.started:
            process.wait()
        remove_shared_memory(ADDRESS, self.rendezvous.port)

    def _numbered(self) -> Iterator[tuple[int, subprocess.Popen[bytes] | ForkedRank]]:
        return enumerate(self.started, self.launch.first)

    def _family(self) -> list[psutil.Process]:
        """Every living process with this launch's mark: ranks are in sessions of their own, and may leave orphans."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if self._is_marked(process) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _is_marked(self, process: psutil.Process) -> bool:
        return process.environ().get(LAUNCH) == self.rendezvous.mark
