"""`finetune logs`: what the ranks of a run printed, once or as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from finetune.distributed.failure import read_failures
from finetune.errors import UserError
from finetune.terminal import print_line
from finetune.tracking.run import Run
from finetune.tracking.run_summary import status_of

POLL_SECONDS = 0.3
END = 1 << 20  # bytes at the end of a log that are looked through for its last lines


def show_logs(
    run: Path, *, rank: int | None, lines: int, follow: bool, write: Callable[[str], None] = print_line
) -> None:
    """Print the last `lines` lines of a rank's log, or of every log of the run; then what comes, until the run ends. Of a run
    that failed, print why.

    Raises: UserError if the run has no such log.
    """
    opened = Run.open(run)
    files = _files(opened, rank)
    places = {}
    for file in files:
        if len(files) > 1:
            write(f"==> {file.name} <==")
        size = file.stat().st_size
        for line in _last_lines(file, lines):
            write(line)
        if not size:
            write("(empty)" if len(files) > 1 else f"{file.name} is empty: nothing was printed there")
        places[file] = size
    if not follow:
        _tell_failure(opened, write)
    while follow:
        running = status_of(opened, opened.read()) == "running"
        for file in files:
            prefix = f"{file.stem}: " if len(files) > 1 else ""
            places[file] = _print_new(file, places[file], prefix, write, whole_lines=running)
        if not running:
            _tell_failure(opened, write)
            return
        time.sleep(POLL_SECONDS)


def _tell_failure(run: Run, write: Callable[[str], None]) -> None:
    """What ended a run that failed, which its logs need not say: an error with a remedy has no traceback."""
    if status_of(run, run.read()) != "failed":
        return
    first = next((one for one in read_failures(run.logs) if not one.echo), None)
    if first is not None:
        write(f"failed: {first.to_error()}")


def _files(run: Run, rank: int | None) -> list[Path]:
    there = sorted(run.logs.glob("*.log"))
    if rank is None:
        if not there:
            raise UserError("the run has no logs", where=str(run.logs), remedy="They are written when its ranks start.")
        return there
    file = run.logs / f"rank-{rank}.log"
    if file not in there:
        names = ", ".join(path.stem for path in there) or "none"
        raise UserError(f"the run has no log of rank {rank}", where=str(run.logs), remedy=f"It has logs of {names}.")
    return [file]


def _last_lines(file: Path, count: int) -> list[str]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        stream.seek(max(0, size - END))
        text = stream.read().decode("utf-8", "replace")
    found = text.splitlines()
    return found[len(found) - min(count, len(found)) :]


def _print_new(file: Path, place: int, prefix: str, write: Callable[[str], None], *, whole_lines: bool) -> int:
    """Print the lines after `place`; the place after them. whole_lines: leave a line that may still grow for the next time."""
    with file.open("rb") as stream:
        if stream.seek(0, 2) < place:  # it was replaced by a new start
            place = 0
        stream.seek(place)
        content = stream.read()
    whole = content[: content.rfind(b"\n") + 1] if whole_lines else content
    for line in whole.decode("utf-8", "replace").splitlines():
        write(prefix + line)
    return place + len(whole)
