"""One trial in a child process: `python -m finetune train`, which saves and stops when it is asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from finetune.ending import die_with_parent
from finetune.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED
from finetune.recipe.trust import OPTION, is_trusted

PROGRAM = (sys.executable, "-m", "finetune", "train")
End = Literal["done", "stopped", "failed"]
STOPPED_CODES = (EXIT_STOPPED, EXIT_INTERRUPTED, -signal.SIGTERM, -signal.SIGINT)  # the last three: before it had begun
TAIL_BYTES = 20_000


class TrialProcess:
    """A training that runs. It is in a session of its own: Ctrl-C reaches the sweep alone, which passes it on. If the
    sweep is killed, the system sends it SIGTERM, and it saves.

    arguments: of `finetune train`. log: gets what it prints. asked: whether it was asked to save and stop.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        trust = [OPTION] if is_trusted() else []
        log.parent.mkdir(parents=True, exist_ok=True)
        self.asked = False
        self._log = log
        with log.open("ab") as file:
            self._from = file.tell()
            self._process = subprocess.Popen(
                [*PROGRAM, *arguments, *trust],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def ask_to_stop(self) -> None:
        """It saves a checkpoint and ends with code 75."""
        if not self.asked:
            self.asked = True
            self._signal(signal.SIGTERM)

    def abort(self) -> None:
        """It ends at once; what it computed since its last checkpoint is computed again."""
        self.ask_to_stop()
        self._signal(signal.SIGINT)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def poll(self) -> End | None:
        """How it ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return "done" if code == EXIT_DONE else "stopped" if code in STOPPED_CODES else "failed"

    def reason(self) -> str:
        """Why it failed, in one line: its last error, else how it ended."""
        code = self._process.returncode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"was killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
        with self._log.open("rb") as file:
            file.seek(max(self._from, self._log.stat().st_size - TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        reported = [number for number, line in enumerate(lines) if line.startswith(("error: ", "bug: "))]
        if not reported:
            return f"ended with code {code}: {lines[-1] if lines else 'nothing was printed'}"
        head = lines[reported[-1]].removeprefix("error: ")
        if head.endswith("in the recipe") and reported[-1] + 1 < len(lines):  # the faults are listed below
            return f"{head}: {lines[reported[-1] + 1]}"
        return head
