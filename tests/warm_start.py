"""`finetune ARGS` in a fork of a process that has imported torch already: tenths of a second of a core instead of seconds.

For tests of what a command does; how it starts is tested with `run_finetune`, which starts Python. Everything below the command
line is the real program: the process that prepares the data, and the ranks that are started and watched, are forks as well.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from finetune.data.prepare import locks
from finetune.distributed.forking import ForkedRank
from finetune.distributed.launch import PROGRAM
from tests.faults import Finished, surroundings
from tests.ranks import Ranks


def run_warm(pool: Ranks, args: Sequence[str], timeout: float, *, folder: Path) -> Finished:
    """As `run_finetune`, in a fork of the process that forks the ranks of `pool`."""
    return run_warm_tasks(pool, args, timeout, [{}], folder=folder)[0]


def run_warm_tasks(
    pool: Ranks, args: Sequence[str], timeout: float, environments: Sequence[Mapping[str, str]], *, folder: Path
) -> list[Finished]:
    """The same for several processes at once, one with each environment, as srun starts them."""
    began = time.monotonic()
    with ExitStack() as opened:
        outputs = [opened.enter_context(tempfile.TemporaryFile()) for _ in environments]
        processes = []
        for environment, output in zip(environments, outputs, strict=True):
            request = {"arguments": list(args), "folder": str(folder), "environment": surroundings(environment)}
            processes.append(psutil.Process(pool.fork(request, output.fileno())))
        waited = list(processes)
        while waited and (late := time.monotonic() - began) < timeout:
            time.sleep(0.02)
            waited = [process for process in waited if process.status() != psutil.STATUS_ZOMBIE]
        for one in [*waited, *(child for process in processes for child in process.children(recursive=True))]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        codes = [pool.reap(process.pid) for process in processes]
        said = [os.pread(output.fileno(), os.fstat(output.fileno()).st_size, 0) for output in outputs]
    texts = [text.decode(errors="replace") for text in said]
    if waited:
        raise AssertionError(f"still running after {late:.0f} s; the output:\n" + "\n".join(texts))
    seconds = time.monotonic() - began
    return [Finished(code, text, seconds) for code, text in zip(codes, texts, strict=True)]


def slurm_tasks(count: int) -> list[dict[str, str]]:
    """The variables that Slurm sets for each task of srun, which need not be installed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(count), "SLURM_NODEID": "0"}
    common |= {"SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_TASKS_PER_NODE": str(count)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(count)]


def be_finetune(request: Mapping[str, Any], output: int) -> int:
    """In the fork: the process that a user starts. Returns its exit code."""
    from finetune.app import apart
    from finetune.distributed import forking, rank_processes, waiting

    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(request["folder"])
    fork_what_would_start(apart, rank_processes, waiting, forking)
    return run_command_line(request["arguments"], request["environment"])


def fork_what_would_start(apart: Any, *launching: Any) -> None:
    """Python is not started again by this process: neither to prepare the data, nor for ranks. Of these modules."""
    apart.multiprocessing = _Contexts()
    for module in launching:
        module.subprocess = _Subprocess()
        if hasattr(module, "RankProcesses"):
            module.RankProcesses._family = _family


def run_command_line(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit code of `finetune ARGUMENTS`, run here in this environment. What Python itself would print goes to stderr."""
    from finetune import cli

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["finetune", *arguments]
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    code = 1
    try:
        cli.main(None if "FINETUNE_WAITS" in environment else arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:  # as an interpreter ends
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _family(launched: Any) -> list[psutil.Process]:
    """The living processes of a launch: found by their environment where they were started, but forks show their parent's."""
    ranks = [psutil.Process(rank.pid) for rank in launched.started if rank.poll() is None]
    found = []
    for process in [*ranks, *(child for rank in ranks for child in rank.children(recursive=True))]:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class _Child(ForkedRank):
    """A fork, as code uses subprocess.Popen."""

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Subprocess:
    """`subprocess`, whose Popen forks this process where the command is finetune's."""

    @staticmethod
    def Popen(command: Sequence[str], **options: Any) -> Any:  # noqa: N802
        if tuple(command[: len(PROGRAM)]) != PROGRAM:
            return subprocess.Popen(command, **options)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        pid = os.fork()
        if pid:
            return _Child(pid)
        code = 1
        try:
            _become(options)
            code = run_command_line(command[len(PROGRAM) :], options["env"])
        finally:
            os._exit(code)

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)


def _become(options: Mapping[str, Any]) -> None:
    """What Popen does between fork and exec: the session, standard error, and no descriptor that is not passed on."""
    os.setsid()
    os.dup2(options["stderr"], 2)
    kept = sorted([2, *options.get("pass_fds", ())])
    for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)
    locks._used.clear()  # with their descriptors
    if "preexec_fn" in options:
        options["preexec_fn"]()


class _Contexts:
    """`multiprocessing`, whose contexts all fork."""

    def get_context(self, method: str) -> Any:
        return multiprocessing.get_context("fork")

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)
