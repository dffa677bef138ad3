"""Runs a command line of finetune in a forked process with a terminal of its own: a tenth of a second instead of seconds.

One process imports what the commands need; each attack is a fork of it. What the child prints passes a pseudo terminal, as
a user's would, so that escape codes are seen as a terminal would get them.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import pty
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hostile.attack import Attack

SECRET = "hostile-5f1e9a7c-never-print-me"  # of the child's environment
SECRET_NAMES = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY")
MEMORY = 6 << 30  # bytes of address space beyond what the child has; a bomb ends here, not at the machine's limit
SHOWN = 4_000_000  # bytes of output that are kept


@dataclass(frozen=True)
class Outcome:
    """code: exit code, minus the signal for one that was killed. seconds, cpu: of the clock, and of processors over all its
    processes. memory: bytes, of the largest process. hung: it had to be ended after the time that it was given.
    """

    code: int
    output: str
    seconds: float
    cpu: float
    memory: int
    hung: bool


@dataclass(frozen=True)
class Limits:
    """As of an Attack."""

    seconds: float
    stop_after: float
    bound: bool
    environment: dict[str, str]
    temporary: str
    before: Callable[[], None] | None


class Program:
    """The process that attacks are forked from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.hostile.preload"])

    def run(self, attack: Attack, arguments: Sequence[str], cwd: Path) -> Outcome:
        """`finetune ARGUMENTS` in the folder `cwd`."""
        self.count += 1
        answer = self.folder / f"outcome-{self.count}.json"
        limits = Limits(
            attack.seconds, attack.stop_after, attack.bound, dict(attack.environment), str(self.folder), attack.before
        )
        process = self._context.Process(target=_supervise, args=(list(arguments), str(cwd), str(answer), limits))
        process.start()
        process.join(limits.seconds + 30)
        if process.is_alive():
            process.kill()
            return Outcome(-9, "", limits.seconds, 0.0, 0, True)
        return Outcome(**json.loads(answer.read_text()))

    def call(self, function: Callable[[Path], None], folder: Path) -> None:
        """A function of a module in a fork, in which it may change what it likes."""
        process = self._context.Process(target=function, args=(folder,))
        process.start()
        process.join(120)
        assert process.exitcode == 0, f"{function.__name__} ended with {process.exitcode}"


def _supervise(arguments: list[str], cwd: str, answer: str, limits: Limits) -> None:
    began = time.monotonic()
    child, terminal = pty.fork()
    if child == 0:
        os._exit(_be_finetune(arguments, cwd, limits))
    output, hung, stopped = bytearray(), False, not limits.stop_after
    while True:
        passed = time.monotonic() - began
        if not stopped and passed > limits.stop_after:
            os.kill(child, signal.SIGTERM)
            stopped = True
        if passed > limits.seconds:
            hung = True
            _end_family(child)
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                data = os.read(terminal, 1 << 16)
            except OSError:  # the child has ended
                break
            if not data:
                break
            if len(output) < SHOWN:
                output += data
    _, status, usage = os.wait4(child, 0)
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(answer).write_text(
        json.dumps(
            {
                "code": os.waitstatus_to_exitcode(status),
                "output": output.decode(errors="replace").replace("\r\n", "\n"),
                "seconds": round(time.monotonic() - began, 2),
                "cpu": round(own.ru_utime + own.ru_stime, 2),
                "memory": max(usage.ru_maxrss, own.ru_maxrss) * 1024,
                "hung": hung,
            }
        )
    )


def _end_family(child: int) -> None:
    import psutil

    family = psutil.Process(child).children(recursive=True)
    for process in [*family, psutil.Process(child)]:
        process.kill()


def _be_finetune(arguments: list[str], cwd: str, limits: Limits) -> int:
    """In the child: a user's process, whose preparation is forked rather than spawned, which would import all again."""
    from finetune import cli
    from finetune.app import apart
    from finetune.distributed import rank_processes
    from finetune.tasks.text import template_limits

    os.chdir(cwd)
    os.environ.update(dict.fromkeys(SECRET_NAMES, SECRET), COLUMNS="120", TERM="xterm-256color")
    os.environ.update(limits.environment, XDG_CACHE_HOME=f"{cwd}/.cache")
    tempfile.tempdir = limits.temporary
    _keep_hub_inside(Path(cwd))
    if limits.bound:
        _give_up_privileges()
    sys.argv = ["finetune", *arguments]
    fork = multiprocessing.get_context("fork")
    apart.multiprocessing = _Contexts(fork)  # type: ignore[attr-defined]
    rank_processes.subprocess = _Forking()  # type: ignore[attr-defined]
    if not limits.stop_after:
        template_limits.SECONDS = 0.3  # the same limit, in less time
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    if limits.before is not None:
        limits.before()
    try:
        cli.main(arguments)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException as error:  # what Python itself would print
        import traceback

        traceback.print_exception(error)
        return 1
    sys.stdout.flush()
    return 0


def _keep_hub_inside(folder: Path) -> None:
    """The hub's cache, and the modules of code that came with models, lie in this folder."""
    from huggingface_hub import constants
    from transformers import dynamic_module_utils

    constants.HF_HUB_CACHE = str(folder / "hub")
    dynamic_module_utils.HF_MODULES_CACHE = str(folder / ".modules")


def _give_up_privileges() -> None:
    """From here on root, too, is bound by the permissions of files: without CAP_DAC_OVERRIDE and what is like it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, held)
    for index in (0, 1):  # effective and permitted
        held[index] &= ~0b1110
    if libc.capset(header, held) != 0:
        raise OSError(ctypes.get_errno(), "capset")


class _Forking:
    """`subprocess`, whose Popen forks a rank of finetune instead of starting Python again."""

    @staticmethod
    def Popen(command: list[str], *, stderr: int, env: dict[str, str], **options: Any) -> _Rank:  # noqa: N802
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setsid()
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                    signal.signal(number, signal.SIG_DFL)
                os.dup2(stderr, 2)
                os.environ.clear()
                os.environ.update(env)
                sys.argv = ["finetune", *command[3:]]
                from finetune import cli

                cli.main(command[3:])
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            finally:
                sys.stdout.flush()
                os._exit(code)
        return _Rank(pid)


class _Rank:
    def __init__(self, pid: int) -> None:
        self.pid, self.code = pid, None

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self) -> int:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class _Contexts:
    """`multiprocessing`, whose contexts all fork."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def get_context(self, method: str) -> Any:
        return self._context

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)
