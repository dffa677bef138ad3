"""Processes that import what ranks need while the data is still being prepared, and then become the ranks. No torch here.

For ranks that cannot be forked from one process, as on GPUs. The supervising process starts each with `WAITS` in its
environment. It imports, then waits at a socket until it receives its arguments and environment, and where stderr goes: from
there on it is the rank that a fresh process would be. A fresh process takes the place of one that ended before.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from finetune.ending import die_with_parent, end_process
from finetune.terminal import phase

WAITS = "FINETUNE_WAITS"  # {"socket": descriptor, ...}; in a process that waits to become a rank
GO = b"+"  # precedes the orders, with the descriptor of stderr


class WaitingRanks:
    """In the supervising process. mark: in the environment of all of them, see Rendezvous."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._idle: list[tuple[subprocess.Popen[bytes], socket.socket]] = []

    @property
    def count(self) -> int:
        return len(self._idle)

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        preload: Mapping[str, object],
    ) -> None:
        """One more. preload: what it imports, see `wait_here`."""
        ours, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                command,
                stderr=log,
                env={**environment, WAITS: json.dumps({"socket": theirs.fileno(), **preload})},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._idle.append((process, ours))

    def become(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: int
    ) -> subprocess.Popen[bytes] | None:
        """The next one as the rank of these; None if there is none, or none that lives. log: takes its stderr."""
        orders = json.dumps({"arguments": list(arguments), "environment": dict(environment)}).encode()
        while self._idle:
            process, control = self._idle.pop(0)
            with control:
                if process.poll() is None:
                    with suppress(OSError):
                        socket.send_fds(control, [GO], [log])
                        control.sendall(orders)
                        return process
            _end(process)
        return None

    def close(self) -> None:
        """End those that were not needed."""
        while self._idle:
            process, control = self._idle.pop()
            control.close()
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def wait_here(load: Callable[[Mapping[str, object]], object]) -> list[str]:
    """In a process with WAITS: `load` what a rank needs, wait, and become it. The arguments of its command.

    load: called with what `WaitingRanks.start` was given as `preload`. The process ends in silence if it is not needed.
    """
    asked = json.loads(os.environ.pop(WAITS))
    with socket.socket(fileno=asked.pop("socket")) as control:
        with suppress(Exception):  # the rank imports again, and says what is wrong where it is heard
            load(asked)
        with phase("waiting for the data", lambda line: None):
            mark, descriptors, _, _ = socket.recv_fds(control, len(GO), 1)
        if mark != GO or not descriptors:
            end_process(0)
        text = b""
        while part := control.recv(1 << 16):
            text += part
    _move_stderr(descriptors[0])
    orders = json.loads(text)
    os.environ.clear()
    os.environ.update(orders["environment"])
    tempfile.tempdir = None  # another one now
    return list(orders["arguments"])


def _move_stderr(log: int) -> None:
    """What libraries printed so far goes there as well."""
    with suppress(OSError):
        os.write(log, os.pread(2, 1 << 20, 0))
    os.dup2(log, 2)
    os.close(log)
