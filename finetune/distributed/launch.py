"""Start N processes through `accelerate launch`, watch them, and tell how they ended. No torch here."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from finetune.distributed.failure import clear_failures, read_failures
from finetune.errors import EXIT_STOPPED, FinetuneError, TrainingFailed

SUPERVISED = (
    "FINETUNE_SUPERVISED"  # the logs folder of the process that watches; it changes what is told, not what is trained
)
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

    def environment(self, logs: Path) -> dict[str, str]:
        env = {**os.environ, SUPERVISED: str(logs), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        env.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // self.processes)))
        env.setdefault("TOKENIZERS_PARALLELISM", "false")
        env.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
        if self.cpu:
            env["DS_ACCELERATOR"] = "cpu"
        return env


def run_workers(launch: Launch, logs: Path, tell: Callable[[str], None]) -> None:
    """Run to the end. Raises: the first failing rank's error, in this process; Stopped if it stopped on request.

    Ctrl-C, SIGTERM and SIGUSR1 are passed on to the ranks, which save and stop; a second Ctrl-C ends them at once.
    """
    logs.mkdir(parents=True, exist_ok=True)
    clear_failures(logs)
    command = launch.command(_free_port())
    tell("$ " + shlex.join(["accelerate", "launch", *command[3:]]))
    with (logs / "launcher.log").open("ab") as log:
        process = subprocess.Popen(
            command, stderr=log, env=launch.environment(logs), start_new_session=True, preexec_fn=_die_with_parent
        )
        watcher = _Watcher(process, logs, tell)
        with watcher.signals_passed_on():
            watcher.wait()
    code = process.returncode
    failures = read_failures(logs)
    if code == 0 and not failures:
        return
    if failures and (not failures[0].echo):
        raise failures[0].to_error()
    raise _unexplained(code, logs)


class _Watcher:
    """Waits for the launcher, and ends what is left some seconds after a first failure."""

    def __init__(self, process: subprocess.Popen[bytes], logs: Path, tell: Callable[[str], None]) -> None:
        self.process, self.logs, self.tell = process, logs, tell
        self.interrupts = 0

    def wait(self) -> None:
        first_failure = 0.0
        while self.process.poll() is None:
            time.sleep(0.1)
            if not first_failure and any(f.exit_code != EXIT_STOPPED for f in read_failures(self.logs)):
                first_failure = time.monotonic()
            if first_failure and time.monotonic() - first_failure > GRACE_SECONDS:
                self.kill()
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the launcher's whole session, workers included."""
        for child in self._family():
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()

    def signals_passed_on(self) -> _Handlers:
        return _Handlers(self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += 1
        if number == signal.SIGINT and self.interrupts > 1:
            self.kill()
            return
        self.tell(f"{signal.Signals(number).name}: saving a checkpoint, then ending (again: end at once)")
        for worker in self.workers():
            worker.send_signal(signal.SIGTERM)

    def workers(self) -> list[psutil.Process]:
        """The processes that carry a RANK."""
        found = []
        for child in self._family():
            try:
                if "RANK" in child.environ() or (child.environ().get(SUPERVISED) and child.pid != self.process.pid):
                    found.append(child)
            except psutil.Error:
                continue
        return found

    def _family(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return [child for child in psutil.process_iter() if _session_of(child.pid) == self.process.pid]


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


def _unexplained(code: int, logs: Path) -> FinetuneError:
    """No rank could say why: it was killed, or died before our code ran."""
    log = logs / "launcher.log"
    text = log.read_text(encoding="utf-8", errors="replace")[-20_000:]
    killed = [(int(rank), int(number)) for number, rank in re.findall(r"exitcode: (-\d+)\) local_rank: (\d+)", text)]
    if killed:
        rank, number = killed[0]
        name = signal.Signals(-number).name
        cause = "; the system may have run out of memory (see dmesg)" if name == "SIGKILL" else ""
        return TrainingFailed(
            f"was killed by {name}{cause}",
            where=f"rank {rank}",
            remedy="the same command goes on from the last checkpoint",
        )
    last = [line for line in text.splitlines() if line.strip()][-1:] or [""]
    return TrainingFailed(f"the processes ended with code {code}: {last[0]}", where=str(log))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _die_with_parent() -> None:
    """Linux: the launcher gets SIGTERM when the process that watches it is gone, so that no rank is left alone."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)
