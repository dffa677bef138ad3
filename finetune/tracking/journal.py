"""The journal: metrics.jsonl and the tables of a run, the primary record; W&B and the report are derived from it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.recipe.json_file import parse_json, read_json
from finetune.tracking.atomic_files import disk_errors, plain, publish_json, sync_folder
from finetune.tracking.run import Run
from finetune.units import format_number

MAX_STEP = 1 << 53
_TABLE_FILE = re.compile(r"^(?P<name>.+)-step-(?P<step>\d{8,})\.json$")


class Journal:
    """A Listener that writes metrics and tables into the run folder; each row is on disk before training continues.

    Numbers that JSON lacks (NaN, infinity) are written as null. Raises FinetuneError naming the file if it cannot be
    written, and leaves no partial line behind.
    """

    essential = True  # Listeners: its failure ends training

    def __init__(self, run: Run) -> None:
        self.run = run
        self._handle = -1
        self._step: int | None = None  # the last one done

    def started(self, *, start_step: int, total_steps: int, steps_per_epoch: int, facts: Mapping[str, Any]) -> None:
        cut(self.run.metrics_file, start_step)
        for path, _, step in list_tables(self.run.tables):
            if step > start_step or start_step == 0:
                path.unlink()
        steps = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
        self.run.begin_session(start_step=start_step, facts={**facts, **steps})
        with disk_errors(self.run.metrics_file):
            self._handle = os.open(self.run.metrics_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def step(self, *, step: int, epoch: float, progress: Mapping[str, float]) -> None:
        """Not every step becomes a row: the loop decides, and calls `row`. The last step done goes into run.json."""
        self._step = step

    def row(self, row: Mapping[str, float | int | str]) -> None:
        line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace") + b"\n"
        with disk_errors(self.run.metrics_file):
            if self._handle < 0:  # rows after `finished`, such as the test split's
                self._handle = os.open(self.run.metrics_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            size = os.fstat(self._handle).st_size
            try:
                written = os.write(self._handle, line)
                if written < len(line):
                    os.write(self._handle, line[written:])  # raises the reason why the rest did not fit
                os.fsync(self._handle)
            except OSError:
                _truncate(self._handle, size)
                raise

    def table(self, name: str, *, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        value = {"name": name, "step": step, "columns": list(columns), "rows": [list(row) for row in rows]}
        publish_json(self.run.tables / f"{name}-step-{step:08d}.json", value)

    def checkpoint(self, path: Path, *, step: int, best: bool) -> None:
        """Not recorded: the checkpoint has its own manifest."""

    def message(self, text: str) -> None:
        """Not recorded: messages are for the console."""

    def finished(self, *, status: str, summary: Mapping[str, Any]) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        self.run.end_session(status=status, summary=summary, step=self._step)


def read_rows(path: Path, limit_bytes: int | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a metrics.jsonl in the order written; a partial line (a crash while it was written) is skipped.

    limit_bytes: stop there, for a file that is still being written.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if limit_bytes is not None:
                limit_bytes -= len(line)
                if limit_bytes < 0:
                    return
            row = _parse(line)
            if row is not None:
                yield row


def describe_unreadable(path: Path) -> str:
    """What is damaged: "3 of 60 lines are no rows (the first is line 7)"; "" for nothing. A last line that a crash has cut off
    is no damage.

    Raises: OSError if the file cannot be read.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    bad = [number for number, line in enumerate(lines, 1) if line.endswith(b"\n") and _parse(line) is None]
    if not bad:
        return ""
    are = "is no row" if len(bad) == 1 else "are no rows"
    return f"{len(bad):,} of {format_number(len(lines), 'line')} {are} (the first is line {bad[0]:,})"


def cut(path: Path, step: int, *, evaluated: bool = True) -> None:
    """Remove rows after `step` and of the test split (they will be logged again), all rows if `step` is 0, and partial
    lines. evaluated: False removes the evaluation of `step` itself, too.

    The file is replaced atomically. Raises: FinetuneError if it cannot be written.
    """
    if not path.is_file():
        return
    with disk_errors(path):
        beside = path.with_name(f".{path.name}.incomplete")
        with path.open("rb") as old, beside.open("wb") as new:
            for line in old:
                row = _parse(line)
                if step > 0 and row is not None and not _comes_again(row, step, evaluated):
                    new.write(line)
            new.flush()
            os.fsync(new.fileno())
        beside.replace(path)
        sync_folder(path.parent)


def _comes_again(row: Mapping[str, Any], step: int, evaluated: bool) -> bool:
    """Whether a training that resumes after `step` logs this row."""
    at, split = int(row.get("step") or 0), row.get("split")
    return split == "test" or at > step or (at == step and split == "validation" and not evaluated)


def list_tables(folder: Path) -> list[tuple[Path, str, int]]:
    """(file, name, step) of each table, by step then name."""
    tables = []
    for path in folder.glob("*.json"):
        match = _TABLE_FILE.match(path.name)
        if match:
            tables.append((path, match["name"], int(match["step"])))
    return sorted(tables, key=lambda item: (item[2], item[1]))


def read_table(path: Path) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows) of a table file. Raises: OSError if it cannot be read; ValueError if it holds no table."""
    value = read_json(path)
    columns, rows = (value.get("columns"), value.get("rows")) if isinstance(value, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(rows, list) or not all(isinstance(one, str) for one in columns):
        raise ValueError(f"{path} is not a table")
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise ValueError(f"{path}: rows do not have one value for each column")
    return columns, rows


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    step = row.get("step")
    return row if step is None or (isinstance(step, (int, float)) and 0 <= step < MAX_STEP) else None


def _truncate(handle: int, size: int) -> None:
    """Remove a partially written line; if even that fails, readers skip it."""
    try:
        os.ftruncate(handle, size)
    except OSError:
        return
