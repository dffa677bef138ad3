"""One side of one row: a program of its own, killed whole when its time is up, that prints `RESULT {...}`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARK = "RESULT "
MARK_VARIABLE = "BENCHMARKS_GPU_JOB"  # in the environment of all that a job starts
TURN_VARIABLE = "BENCHMARKS_GPU_TURN"  # the file that is there as soon as it is its turn
POLL_SECONDS = 0.1
KILL_SECONDS = 10.0  # until processes that were killed are gone: memory of a GPU is freed before


@dataclass(frozen=True)
class Job:
    """command: its program. log: where its output goes. watch: called while it runs; a result that it returns ends the
    job (our own command line does not stop after so many steps by itself). salvage: called where neither it nor the
    program gave a result. early: the program imports what it needs, then waits for its turn (`wait_for_turn`), so it may be
    started before another job has ended.
    """

    name: str
    command: list[str]
    log: Path
    watch: Callable[[], dict[str, Any] | None] | None = None
    salvage: Callable[[], dict[str, Any] | None] | None = None
    early: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, seconds: float) -> dict[str, Any]:
        """Its result, or {"not run": why}. Nothing that it started is left."""
        return Running(self).result(seconds)

    def last_lines(self, count: int) -> str:
        """Of what it printed."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.is_file() else []
        return "\n".join(lines[-count:])


class Running:
    """The program of a job, from its start on. Whoever makes one calls `result` or `end`."""

    def __init__(self, job: Job) -> None:
        self.job, self._mark = job, uuid.uuid4().hex
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self._turn = job.log.with_suffix(".turn")
        self._turn.unlink(missing_ok=True)
        own = {MARK_VARIABLE: self._mark, TURN_VARIABLE: str(self._turn)}
        with job.log.open("wb") as log:
            self._process = subprocess.Popen(
                job.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **job.environment, **own},
            )

    def result(self, seconds: float) -> dict[str, Any]:
        """It is its turn: what `Job.run` returns, `seconds` from now at the latest."""
        try:
            self._turn.touch()
            watched = self._wait(time.monotonic() + seconds)
        finally:
            self.end()
        job = self.job
        found = watched or self._printed() or (job.salvage() if job.salvage is not None else None)
        return found or {"not run": self._why(seconds)}

    def end(self) -> None:
        """Kill it, and all that it started."""
        _kill_all(self._process, self._mark)

    def _wait(self, ends: float) -> dict[str, Any] | None:
        watch = self.job.watch
        while self._process.poll() is None and time.monotonic() < ends:
            if watch is not None and (result := watch()) is not None:
                return result
            time.sleep(POLL_SECONDS)
        return watch() if watch is not None else None

    def _printed(self) -> dict[str, Any] | None:
        lines = [line for line in self._text().splitlines() if line.startswith(MARK)]
        return json.loads(lines[-1].removeprefix(MARK)) if lines else None

    def _why(self, seconds: float) -> str:
        text = [line for line in self._text().splitlines() if line.strip()]
        last, code = text[-1].strip()[:160] if text else "no output", self._process.returncode
        return (
            f"killed after {seconds:.0f} s: {last}" if code in (None, -signal.SIGKILL) else f"exit code {code}: {last}"
        )

    def _text(self) -> str:
        return self.job.log.read_text(errors="replace")


def _kill_all(process: subprocess.Popen[bytes], mark: str) -> None:
    """SIGKILL to the process and all that it started, in whatever session: ranks that were only asked to stop would save
    gigabytes first, while the next job is timed.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGSTOP)  # it starts nothing from now on, and does not see its ranks end
    ends = time.monotonic() + KILL_SECONDS
    while (found := _marked(mark)) and time.monotonic() < ends:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS / 4)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _marked(mark: str) -> list[int]:
    """Processes that live and inherited the mark in their environment."""
    sought, found = f"{MARK_VARIABLE}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            if sought in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def python(module: str, *arguments: Any) -> list[str]:
    """The command line of one of our modules."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def wait_for_turn() -> None:
    """Called by a program that was started early, before it uses the GPU."""
    while (turn := os.environ.get(TURN_VARIABLE)) and not Path(turn).exists():
        time.sleep(POLL_SECONDS / 5)


def tell(**result: Any) -> None:
    """Print the result of a job, at its end."""
    print(MARK + json.dumps(result), flush=True)
