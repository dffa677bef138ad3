"""One side of one row: a program of its own, killed whole when its time is up, that prints `RESULT {...}`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARK = "RESULT "
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """command: its program. log: where its output goes. watch: called while it runs; a result that it returns ends the
    job (our own command line does not stop after so many steps by itself).
    """

    name: str
    command: list[str]
    log: Path
    watch: Callable[[], dict[str, Any] | None] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, seconds: float) -> dict[str, Any]:
        """Its result, or {"not run": why}. Nothing that it started is left."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )
            try:
                watched = self._wait(process, time.monotonic() + seconds)
            finally:
                _kill_session(process)
        return watched or self._printed() or {"not run": self._why(process.returncode, seconds)}

    def _wait(self, process: subprocess.Popen[bytes], ends: float) -> dict[str, Any] | None:
        while process.poll() is None and time.monotonic() < ends:
            if self.watch is not None and (result := self.watch()) is not None:
                return result
            time.sleep(POLL_SECONDS)
        return self.watch() if self.watch is not None else None

    def _printed(self) -> dict[str, Any] | None:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith(MARK)]
        return json.loads(lines[-1].removeprefix(MARK)) if lines else None

    def _why(self, code: int | None, seconds: float) -> str:
        text = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        last = text[-1].strip()[:160] if text else "no output"
        return (
            f"killed after {seconds:.0f} s: {last}" if code in (None, -signal.SIGKILL) else f"exit code {code}: {last}"
        )


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and all that it started: a training that is asked to stop would save gigabytes first."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def python(module: str, *arguments: Any) -> list[str]:
    """The command line of one of our modules."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def tell(**result: Any) -> None:
    """Print the result of a job, at its end."""
    print(MARK + json.dumps(result), flush=True)
