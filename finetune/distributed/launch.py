"""Start N processes through `accelerate launch`, watch them, and report how they ended. No torch here."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from finetune.distributed.failure import clear_failures, read_failures
from finetune.errors import EXIT_STOPPED, FinetuneError, Stopped, TrainingFailed

SUPERVISED = (
    "FINETUNE_SUPERVISED"  # logs folder of the supervising process; it changes what is printed, not what is trained
)
LAUNCH = "FINETUNE_LAUNCH"  # the same in every process of one launch, orphans among them
GRACE_SECONDS = 3.0  # from the first failure to the end of every rank


@dataclass(frozen=True)
class Launch:
    """What is started: `python -m finetune <arguments>` on `processes` ranks of this machine."""

    arguments: Sequence[str]
    processes: int
    deepspeed: bool
    cpu: bool

    def command(self, port: int) -> list[str]:
        """The argv of accelerate launch, ready to be typed by hand."""
        mode = ["--use_deepspeed"] if self.deepspeed else ["--multi_gpu"] if self.processes > 1 else []
        return [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--num_processes", str(self.processes), "--num_machines", "1", "--main_process_port", str(port)),
            *("--mixed_precision", "no", "--dynamo_backend", "no"),
            *mode,
            *("-m", "finetune", *self.arguments),
        ]

    def environment(self, logs: Path, mark: str) -> dict[str, str]:
        env = {**os.environ, SUPERVISED: str(logs), LAUNCH: mark, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // self.processes)))
        env.setdefault("TOKENIZERS_PARALLELISM", "false")
        env.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
        if self.cpu:
            env["DS_ACCELERATOR"] = "cpu"
        return env


def run_workers(launch: Launch, logs: Path, notify: Callable[[str], None]) -> None:
    """Run to the end. Raises: the first failing rank's error, in this process; Stopped if it stopped on request.

    Ctrl-C, SIGTERM and SIGUSR1 are passed on to the ranks, which save and stop; a second Ctrl-C ends them at once.
    """
    logs.mkdir(parents=True, exist_ok=True)
    clear_failures(logs)
    command, mark = launch.command(_free_port()), uuid.uuid4().hex
    notify("$ " + shlex.join(["accelerate", "launch", *command[3:]]))
    with (logs / "launcher.log").open("ab") as log:
        said_from = log.tell()
        process = subprocess.Popen(
            command, stderr=log, env=launch.environment(logs, mark), start_new_session=True, preexec_fn=die_with_parent
        )
        watcher = _Watcher(process, mark, logs, notify, alone=launch.processes == 1 and not launch.deepspeed)
        with watcher.signals_passed_on():
            watcher.wait()
    _raise_outcome(process.returncode, watcher, logs, said_from)


def _raise_outcome(code: int, watcher: _Watcher, logs: Path, said_from: int) -> None:
    """The error of the rank that failed first, if one failed. What a rank reports goes before what the launcher reports."""
    failures = read_failures(logs)
    if watcher.aborted:
        raise KeyboardInterrupt
    killed = _killed(code, logs, said_from)
    # A launcher that is killed ends its ranks with SIGTERM: they stop in order, but nobody asked for it.
    unasked = code < 0 and not watcher.interrupts and all(failure.exit_code == EXIT_STOPPED for failure in failures)
    if failures and not failures[0].echo and not unasked:
        raise failures[0].to_error()
    if watcher.interrupts and killed is not None:
        raise Stopped("stopped while the processes were starting; run the same command to resume")
    if killed is not None:
        raise killed
    if code or failures:
        raise failures[0].to_error() if failures else _unexplained(code, logs, said_from)


class _Watcher:
    """Waits for the launcher, and ends what is left some seconds after a first failure.

    alone: the launcher starts one process without telling it a rank.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        mark: str,
        logs: Path,
        notify: Callable[[str], None],
        *,
        alone: bool = False,
    ) -> None:
        self.process, self.mark, self.logs, self.notify = process, mark, logs, notify
        self.alone = alone
        self.interrupts, self.aborted = 0, False
        self._asked: set[int] = set()

    def wait(self) -> None:
        """Until no process of the launch is left."""
        first_failure = 0.0
        while self.process.poll() is None:
            time.sleep(0.1)
            if self.interrupts:
                self._ask_to_stop()
            if not first_failure and any(f.exit_code != EXIT_STOPPED for f in read_failures(self.logs)):
                first_failure = time.monotonic()
            if first_failure and time.monotonic() - first_failure > GRACE_SECONDS:
                self.kill()
        self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of the launch; repeated, since a dying launcher may have started more."""
        while family := self._family():
            for child in family:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(family, timeout=1)
        self.process.wait()

    def signals_passed_on(self) -> _Handlers:
        return _Handlers(self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += 1
        if number == signal.SIGINT and self.interrupts > 1:
            self.aborted = True
            self.kill()
            return
        if self.interrupts == 1:
            self.notify(f"{signal.Signals(number).name}: saving a checkpoint, then ending (Ctrl-C: at once)")

    def _ask_to_stop(self) -> None:
        """SIGTERM to each rank once, also to those that start after the signal."""
        for worker in self.workers():
            if worker.pid not in self._asked:
                self._asked.add(worker.pid)
                with suppress(psutil.NoSuchProcess):
                    worker.send_signal(signal.SIGTERM)

    def workers(self) -> list[psutil.Process]:
        """The ranks: the oldest process of each RANK, since the children of a rank inherit the variable.

        accelerate launch sets no RANK for a single process without DeepSpeed: that is the oldest child of the launcher.
        """
        found: dict[str, psutil.Process] = {}
        for child in self._oldest_first():
            with suppress(psutil.Error):
                rank = child.environ().get("RANK", "")
                if rank or (self.alone and child.ppid() == self.process.pid):
                    found.setdefault(rank, child)
        return list(found.values())

    def _oldest_first(self) -> list[psutil.Process]:
        """The processes of the launch without the launcher itself."""
        family = [child for child in self._family() if child.pid != self.process.pid]
        return sorted(family, key=lambda child: child.create_time())

    def _family(self) -> list[psutil.Process]:
        """Every living process with this launch's mark: ranks are in sessions of their own, and may be orphans."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(LAUNCH) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


class _Handlers:
    """Signal handlers for the time of a run."""

    def __init__(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self.handler = handler
        self.before: dict[int, object] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self.before[number] = signal.signal(number, self.handler)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _killed(code: int, logs: Path, said_from: int) -> FinetuneError | None:
    """What a signal ended, from the launcher's report: no other process knows."""
    pattern = r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: -(\d+)"
    killed = [(int(number), f"rank {rank}") for rank, number in re.findall(pattern, _said(logs, said_from))]
    # The launcher ends the others with SIGTERM, so that one comes last.
    killed.sort(key=lambda one: one[0] == signal.SIGTERM)
    if code < 0:
        killed.append((-code, "the launcher (accelerate launch)"))
    if not killed:
        return None
    number, who = killed[0]
    name = signal.Signals(number).name
    cause = "; the system may have run out of memory (see dmesg)" if name == "SIGKILL" else ""
    remedy = "Run the same command to resume from the last checkpoint."
    return TrainingFailed(f"was killed by {name}{cause}", where=who, remedy=remedy)


def _unexplained(code: int, logs: Path, said_from: int) -> FinetuneError:
    """No rank could report why: it ended before our code ran."""
    lines = [line.strip() for line in _said(logs, said_from).splitlines()]
    errors = [line for line in lines if re.match(r"\w*(Error|Exception)\b.*:", line)]
    last = (errors or [line for line in lines if line.strip("=-")] or ["nothing was printed"])[-1]
    return TrainingFailed(f"the processes ended with code {code}: {last}", where=str(logs / "launcher.log"))


def _said(logs: Path, said_from: int) -> str:
    """What the launcher wrote during this launch; the file holds earlier ones, too."""
    with (logs / "launcher.log").open("rb") as log:
        log.seek(said_from)
        return log.read()[-100_000:].decode(errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """Linux: this process gets SIGTERM when its parent is gone. So no launcher is left alone, and no rank, which then
    saves and stops.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
