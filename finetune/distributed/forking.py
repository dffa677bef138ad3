"""Ranks that are forked from one process, which imported torch once for all of them. No torch here.

Where ranks share the cores of one machine, imports are most of their start. The supervising process starts one process with
the command of a rank and `FORKS` in its environment. That process imports what ranks need, forks one child for each rank,
tells their ids, and ends: Linux then gives the ranks to the supervising process, whose own children they are from there on,
with exit codes, signals and the end of the parent as if it had started them. A rank goes on when it has been given away.

Not with GPUs: a process that has asked CUDA for anything cannot be forked, and a library that is imported may ask.
Whatever goes wrong before the ranks exist, they are started one by one, each with imports of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from finetune.ending import die_with_parent, end_process

FORKS = "FINETUNE_FORKS"  # descriptor of the socket to the supervising process; in the process that forks ranks
RANK_VARIABLES = ("RANK", "LOCAL_RANK")  # by which the environments of the ranks of one machine differ
NAME_OF_RANK = "rank "  # and its number: the name of a forked rank's process, as in `ps -o comm` and top
POLL_SECONDS = 0.05
_SET_NAME, _SET_CHILD_SUBREAPER = 15, 36  # of prctl


class ForkedRank:
    """A rank as rank_processes.py uses subprocess.Popen: a child of this process, though another one forked it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, minus the signal that killed it; None while it runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        """The same, when it has ended."""
        return self._wait(0)

    def send_signal(self, number: int) -> None:
        """Nothing, once it has ended: its id may be another process's."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def fork_ranks(
    command: Sequence[str],
    environment: Mapping[str, str],
    ranks: int,
    log: int,
    *,
    wanted: Callable[[], bool],
) -> list[ForkedRank]:
    """Ranks 0, 1, ... of `command`; [] if they could not be forked, or are not wanted any more.

    environment: of rank 0. log: takes what they print to stderr.
    """
    shared = {name: value for name, value in environment.items() if name not in RANK_VARIABLES}
    ours, theirs = socket.socketpair()
    with ours, _adopting() as adopts:
        with theirs:
            if not adopts:
                return []
            process = subprocess.Popen(
                command,
                stderr=log,
                env={**shared, FORKS: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        pids = _told(ours, wanted)
        if len(pids) != ranks:
            process.kill()
        process.wait()
        if len(pids) != ranks:
            return []
        with suppress(OSError):  # a rank that ended already is seen by its exit code
            ours.sendall(bytes(ranks))
        return [ForkedRank(pid) for pid in pids]


def _told(ours: socket.socket, wanted: Callable[[], bool]) -> list[int]:
    """The process ids, as soon as they come; [] if the process ends without them, or they are not wanted any more."""
    text = b""
    while wanted():
        if not select.select([ours], [], [], POLL_SECONDS)[0]:
            continue
        with suppress(OSError):
            part = ours.recv(1 << 16)
            text += part
            if part and not text.endswith(b"\n"):
                continue
        return json.loads(text) if text.endswith(b"\n") else []
    return []


class _adopting:  # noqa: N801 (used as a function)
    """Inside, children of a child that ends become children of this process. Yields whether the system does that."""

    def __enter__(self) -> bool:
        return _prctl(_SET_CHILD_SUBREAPER, 1)

    def __exit__(self, *exception: object) -> None:
        _prctl(_SET_CHILD_SUBREAPER, 0)


def fork_here(load: Callable[[], None]) -> None:
    """In a process that is to fork ranks: `load` what they need, and go on as each of them. Elsewhere: nothing.

    The process itself does not return; it ends in silence if `load` fails, for ranks with imports of their own say why.
    """
    descriptor = os.environ.pop(FORKS, None)
    if descriptor is None:
        return
    control, supervisor, forker = socket.socket(fileno=int(descriptor)), os.getppid(), os.getpid()
    pids: list[int] = []
    try:
        load()
        sys.stdout.flush()
        sys.stderr.flush()
        if threading.active_count() == 1:  # another thread may hold a lock, which a fork would keep locked forever
            for _ in range(int(os.environ["WORLD_SIZE"])):
                pids.append(os.fork())
                if pids[-1] == 0:
                    break
    except BaseException:
        if os.getpid() == forker:
            traceback.print_exc()  # into launcher.log
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)  # else it would be a zombie of the supervising process
            end_process(1)
        raise
    if pids and pids[-1] == 0:
        _become(len(pids) - 1, control, supervisor)
        return
    with suppress(OSError):
        control.sendall(json.dumps(pids).encode() + b"\n")
    end_process(0)


def _become(rank: int, control: socket.socket, supervisor: int) -> None:
    """This process is a rank: what a fresh process would have of its own is renewed. Ends if nobody waits for it."""
    os.setsid()
    with control:
        if not control.recv(1):
            end_process(1)
    die_with_parent()
    if os.getppid() != supervisor:  # it has ended meanwhile
        end_process(1)
    os.environ.update({name: str(rank) for name in RANK_VARIABLES})
    _prctl(_SET_NAME, f"{NAME_OF_RANK}{rank}".encode())
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own generator is renewed by the fork


def _prctl(option: int, value: int | bytes) -> bool:
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0
