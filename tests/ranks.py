"""Ranks for distributed tests: processes with a gloo group, started once a test session and used by every test.

    def check(word):                                # module level: ranks import it from the test's file
        tensor = torch.ones(1)
        torch.distributed.all_reduce(tensor)
        return word, tensor.item()

    def test_it(ranks):
        assert ranks.run(2, check, "sum") == [("sum", 2.0)] * 2

Every call begins clean: a new process group, seeds, environment, and none of Accelerate's or DeepSpeed's state.
"""

import inspect
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

from tests.pretended_cuda.install import for_children

STRAGGLER_SECONDS = 2.0  # after one rank failed, the others may say what they saw before they are stopped
SHOWN_CHARACTERS = 4000  # of each rank's output, when a call failed


class RankError(AssertionError):
    """One or more ranks raised, died or hung. causes: the exceptions by rank, None where none could be brought back."""

    def __init__(self, message: str, causes: Mapping[int, BaseException | None]) -> None:
        super().__init__(message)
        self.causes = dict(causes)


@dataclass
class _Pool:
    """The ranks of one world size. logs: what each prints; shown_from: where the current call's output begins."""

    pids: list[int]
    connections: list[Connection]
    logs: list[Path]
    stacks: list[Path]
    shown_from: list[int] = field(default_factory=list)

    def output(self, rank: int) -> str:
        with self.logs[rank].open("rb") as log:
            log.seek(self.shown_from[rank] if self.shown_from else 0)
            return log.read().decode(errors="replace")[-SHOWN_CHARACTERS:]


@dataclass
class _Session:
    """The process that ranks are forked from, and the pools by world size.

    gpu: ranks are processes of their own that use CUDA, which a forked process cannot once its parent has asked for it.
    pretended: they use a device that is pretended (tests/pretended_cuda), which the process that forks them never does.
    """

    folder: Path
    gpu: bool = False
    pretended: bool = False
    fresh: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)  # by process id; with gpu
    fork_server: subprocess.Popen[bytes] | None = None
    control: socket.socket | None = None
    pools: dict[int, _Pool] = field(default_factory=dict)
    last: int = 0  # world size of the latest call
    started: int = 0  # pools, over the session


class Ranks:
    """The `ranks` fixture. `run` calls a function on every rank; `options` gives the same ranks with other options."""

    def __init__(self, folder: Path, *, gpu: bool = False, pretended: bool = False) -> None:
        """gpu: the ranks use CUDA, all of them the first GPU. Each imports torch for itself, once a test session: the ranks of
        a call are the first ones of a larger call. pretended: the GPU is pretended, and the ranks are forked.
        """
        self._session = _Session(folder, gpu and not pretended, pretended)
        self._timeout = 60.0
        self._open_group = True
        self._environment: dict[str, str] = {}

    @property
    def folder(self) -> Path:
        """Of the logs of all ranks."""
        return self._session.folder

    def options(
        self,
        *,
        timeout: float | None = None,
        open_group: bool | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> "Ranks":
        """timeout: seconds for a call. open_group: False leaves opening the process group to the tested code (RANK,
        WORLD_SIZE, LOCAL_RANK, MASTER_ADDR... are set either way). environment: more variables, for these calls only.
        """
        other = object.__new__(Ranks)
        other._session = self._session
        other._timeout = self._timeout if timeout is None else timeout
        other._open_group = self._open_group if open_group is None else open_group
        other._environment = self._environment | dict(environment or {})
        return other

    def run(self, n: int, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a module-level function on n ranks at once. Returns one result a rank, in order; results are pickled.

        Raises: RankError with the traceback and output of each rank that raised or died, or with the stacks of all if
        the time was up. pytest.skip on a rank skips the test.
        """
        if not 1 <= n <= 8:
            raise ValueError(f"{n} ranks: between 1 and 8 are possible")
        call = self._describe_call(function, args, kwargs)
        pool = self.start(n)
        pool.shown_from = [path.stat().st_size for path in pool.logs]
        self._session.last = n
        answers: dict[int, tuple[Any, ...]] = {}
        try:
            for rank, connection in enumerate(pool.connections):
                environment = _rank_environment(rank, n) | call["environment"]
                with suppress(OSError):  # a dead rank is told by its silence below
                    connection.send_bytes(pickle.dumps({**call, "environment": environment}))
                    continue
                answers[rank] = ("died",)
            hung = _collect(pool, answers, self._timeout)
        except BaseException:  # Ctrl-C, or pytest-timeout: the ranks are somewhere inside the call
            _stop_pool(self._session, n)
            raise
        finally:
            _unlink_shared_memory(call["environment"]["MASTER_PORT"])
        return _judge(self._session, n, answers, hung, self._timeout)

    def start(self, n: int) -> _Pool:
        """Let n ranks import what they need before the first call of so many; what stands for them."""
        return self._session.pools.get(n) or _start_pool(self._session, n)

    def fork(self, request: Mapping[str, Any], descriptor: int) -> int:
        """The id of a process that fork_server.py forks for a request that is no rank. `reap` it."""
        if self._session.fork_server is None or self._session.fork_server.poll() is not None:
            _start_fork_server(self._session)
        return _fork(self._session, request, descriptor)

    def reap(self, pid: int) -> int:
        """The exit code of a forked process that ends, or minus the signal."""
        return _reap(self._session, pid)

    def output(self) -> str:
        """What each rank printed in the latest call."""
        pool = self._session.pools.get(self._session.last)
        if pool is None:
            return ""
        texts = {rank: pool.output(rank) for rank in range(len(pool.pids))}
        return "\n".join(f"-- rank {rank} --\n{text}" for rank, text in texts.items() if text.strip())

    def close(self) -> None:
        """End all ranks, and the process that they come from."""
        while self._session.pools:
            _stop_pool(self._session, next(iter(self._session.pools)))
        if self._session.fork_server is not None and self._session.control is not None:
            self._session.control.close()
            self._session.fork_server.kill()
            self._session.fork_server.wait()
            self._session.fork_server = self._session.control = None

    def _describe_call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        name, path = getattr(function, "__qualname__", ""), inspect.getsourcefile(inspect.unwrap(function))
        if "<" in name or not name or path is None:  # <locals>, <lambda>
            raise TypeError(f"{name or function!r} must be a function at the module level of a file: ranks import it")
        port = _free_port()
        return {
            "module": function.__module__,
            "path": path,
            "name": name,
            "arguments": pickle.dumps((args, kwargs)),  # opened on the rank after the module is there
            "open_group": self._open_group,
            "meeting": str(self._session.folder / f"meeting-{time.monotonic_ns()}"),
            "environment": self._environment | {"MASTER_PORT": str(port)},
        }


def _start_fork_server(session: _Session) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    session.fork_server = _start_process(session, session.folder / "fork_server.log", theirs)
    theirs.close()
    session.control = ours


def _start_process(session: _Session, log: Path, theirs: socket.socket, *arguments: str) -> subprocess.Popen[bytes]:
    """fork_server.py with one end of a socket."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if session.pretended:
        environment |= for_children(environment)
    elif session.gpu:
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    else:
        environment["DS_ACCELERATOR"] = "cpu"
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED"):
        environment.pop(name, None)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches pytest alone, which then ends the ranks in order
        )


def _start_pool(session: _Session, n: int) -> _Pool:
    if not session.gpu and (session.fork_server is None or session.fork_server.poll() is not None):
        _start_fork_server(session)
    session.started += 1
    folder = session.folder / f"{n}-ranks-{session.started}"
    folder.mkdir()
    pool = _Pool([], [], [], [])
    if session.gpu:
        largest = max(session.pools.values(), key=lambda one: len(one.pids), default=pool)
        pool = _Pool(largest.pids[:n], largest.connections[:n], largest.logs[:n], largest.stacks[:n])
    for rank in range(len(pool.pids), n):
        ours, theirs = socket.socketpair()
        log, stacks = folder / f"rank-{rank}.log", folder / f"rank-{rank}.stacks"
        log.touch()
        request = {"environment": _rank_environment(rank, n), "log": str(log), "stacks": str(stacks)}
        pool.pids.append(_start_rank(session, request, theirs))
        theirs.close()
        pool.connections.append(Connection(ours.detach()))
        pool.logs.append(log)
        pool.stacks.append(stacks)
    session.pools[n] = pool
    return pool


def _start_rank(session: _Session, request: dict[str, Any], theirs: socket.socket) -> int:
    """Its process id."""
    text = json.dumps(request)
    if session.gpu:
        process = _start_process(session, Path(request["log"]), theirs, text)
        session.fresh[process.pid] = process
        return process.pid
    return _fork(session, request, theirs.fileno())


def _fork(session: _Session, request: Mapping[str, Any], descriptor: int) -> int:
    assert session.control is not None
    socket.send_fds(session.control, [json.dumps(request).encode()], [descriptor])
    reply = session.control.recv(65536)
    if not reply:
        raise RuntimeError(
            f"ranks cannot start:\n{(session.folder / 'fork_server.log').read_text()[-SHOWN_CHARACTERS:]}"
        )
    return int(json.loads(reply)["pid"])


def _reap(session: _Session, pid: int) -> int:
    """The exit code of a rank that ends, or minus the signal."""
    if session.gpu:
        return session.fresh.pop(pid).wait()
    assert session.control is not None
    session.control.send(json.dumps({"reap": pid}).encode())
    return os.waitstatus_to_exitcode(json.loads(session.control.recv(65536))["status"])


def _rank_environment(rank: int, n: int) -> dict[str, str]:
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "LOCAL_SIZE": str(n),  # DeepSpeed's name for it
        "MASTER_ADDR": "127.0.0.1",
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # works where the host's own name does not resolve
    return environment


def _stop_pool(session: _Session, n: int) -> list[int]:
    """Kill the ranks, with gpu those of all pools, which share them; returns how each ended: its exit code, or minus the
    signal.
    """
    pool = session.pools.pop(n)
    every = [pool]
    if session.gpu:
        every += session.pools.values()
        session.pools.clear()
    for connection in (one for some in every for one in some.connections):
        connection.close()
    pids = dict.fromkeys(pid for some in every for pid in some.pids)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    codes = {pid: _reap(session, pid) for pid in pids}
    return [codes[pid] for pid in pool.pids]


def _collect(pool: _Pool, answers: dict[int, tuple[Any, ...]], timeout: float) -> list[int]:
    """Wait for all ranks, or, once one failed, a little longer for the others. Returns the ranks without an answer."""
    waiting = {connection: rank for rank, connection in enumerate(pool.connections) if rank not in answers}
    end = time.monotonic() + (STRAGGLER_SECONDS if answers else timeout)
    while waiting and (left := end - time.monotonic()) > 0:
        for connection in wait(list(waiting), left):
            assert isinstance(connection, Connection)
            rank = waiting.pop(connection)
            try:
                answers[rank] = pickle.loads(connection.recv_bytes())
            except (EOFError, ConnectionError):
                answers[rank] = ("died",)
            except Exception as error:  # a result whose class cannot be made again here
                answers[rank] = ("failed", f"the result of this rank cannot be read: {error!r}\n", error)
            if answers[rank][0] != "done":
                end = min(end, time.monotonic() + STRAGGLER_SECONDS)
    return sorted(waiting.values())


def _judge(
    session: _Session, n: int, answers: dict[int, tuple[Any, ...]], hung: list[int], timeout: float
) -> list[Any]:
    """Results in order of rank; RankError, or a skip, if there is not one from each."""
    pool = session.pools[n]
    dead = [rank for rank, answer in answers.items() if answer[0] == "died"]
    failed = {rank: answer for rank, answer in sorted(answers.items()) if answer[0] == "failed"}
    stacks = _ask_for_stacks(pool, hung)
    codes = _stop_pool(session, n) if dead or hung or (failed and session.gpu) else []  # CUDA errors stay
    if not (failed or dead or hung):
        for answer in answers.values():
            if answer[0] == "skipped":
                pytest.skip(answer[1])
        return [answers[rank][1] for rank in range(n)]
    parts = [_headline(n, list(failed), dead, hung, timeout)]
    for rank in range(n):
        if rank in failed:
            parts.append(f"---- rank {rank} raised ----\n{failed[rank][1]}")
        elif rank in dead:
            parts.append(f"---- rank {rank} died (exit code {codes[rank]}) ----\n")
        elif rank in hung:
            parts.append(f"---- rank {rank} did not answer; it stood here ----\n{stacks[rank]}")
        if (rank in failed or rank in dead or rank in hung) and (text := pool.output(rank)).strip():
            parts.append(f"---- rank {rank} printed ----\n{text}")
    causes = {rank: answer[2] for rank, answer in failed.items()} | dict.fromkeys(dead + hung)
    raise RankError("\n".join(parts), causes)


def _headline(n: int, failed: list[int], dead: list[int], hung: list[int], timeout: float) -> str:
    said = [f"{word} on {ranks}" for word, ranks in (("an exception", failed), ("death", dead)) if ranks]
    if hung:
        said.append(f"no answer from {hung}" if failed or dead else f"no answer from {hung} in {timeout:.0f} s")
    return f"of {n} ranks: {', '.join(said)}"


def _ask_for_stacks(pool: _Pool, ranks: list[int]) -> dict[int, str]:
    """What all threads of these ranks are doing; faulthandler answers even inside a blocked collective."""
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.kill(pool.pids[rank], signal.SIGUSR1)
    if ranks:
        time.sleep(0.5)
    return {rank: pool.stacks[rank].read_text() for rank in ranks}


def _unlink_shared_memory(port: str) -> None:
    """Names of DeepSpeed's memory, 66 MiB a rank: ranks that have opened it keep it, and none is left when they are killed."""
    for file in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_{port}_*"):
        file.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
