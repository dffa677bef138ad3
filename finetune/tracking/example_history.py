"""The loss of each validation example over the evaluations of a run: which were learned, which never, which got worse."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.tracking.class_names import class_names
from finetune.tracking.run import Run
from finetune.units import format_bytes

MAX_EVALUATIONS = 20  # the first, the last, and some between
MAX_ROWS = 500
MAX_BYTES = 256 << 20  # of predictions that are read
WORSE = 1.1  # times the first loss
LEARNED = 0.5  # times the first loss
TEXTS = ("prompt", "chosen", "rejected", "reply", "text", "source", "image", "input")
ANSWERS = ("target", "expected", "label", "predicted", "value", "margin")
KINDS = ("got worse", "never learned", "learned and forgotten", "learned")
SHOWN_CHARACTERS = 400

_ID = re.compile(rb'^\{"id": (\d+)[,}]')  # as inference/tally.py writes it: a line is not parsed to know its example

Table = tuple[list[str], list[list[Any]]]


@dataclass(frozen=True)
class History:
    """ids: examples that every evaluation has, [examples]. steps: of the evaluations that were read. losses: per unit,
    [examples, evaluations]. kinds: what became of each example. last: the predictions of the last evaluation.
    """

    ids: list[int]
    steps: list[int]
    losses: np.ndarray
    kinds: list[str]
    last: Path

    @classmethod
    def read(cls, run: Run) -> History | None:
        """None without two evaluations of the same examples, or where `left_out` says why."""
        files = _chosen(prediction_files(run.predictions))
        if len(files) < 2 or left_out(run):
            return None
        try:
            losses = [dict(_losses(file)) for file, _ in files]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            return None
        common = sorted(set.intersection(*(set(one) for one in losses)))
        if not common:
            return None
        table = np.array([[one[id] for id in common] for one in losses], np.float64).T
        return cls(common, [step for _, step in files], table, [_kind(row) for row in table], files[-1][0])

    def table(self, limit: int = MAX_ROWS) -> Table:
        """The examples that changed for the worse first, then those that were never learned.

        columns: id, what became of it, the loss per unit at the first and the last evaluation, one column for each
        evaluation, and what the last evaluation says of it.
        """
        rank = {"got worse": 0, "never learned": 1, "learned": 3}
        order = sorted(range(len(self.ids)), key=lambda at: (rank.get(self.kinds[at], 2), -float(self.losses[at, -1])))[
            :limit
        ]
        told = {int(row["id"]): describe(row) for row in _rows(self.last, {self.ids[at] for at in order})}
        names = _ordered({name for one in told.values() for name in one})
        columns = ["id", "what became of it", "first loss", "last loss"]
        columns += [*(f"step {step:,}" for step in self.steps), *names]
        rows = []
        for at in order:
            values = [float(f"{value:.5g}") for value in self.losses[at]]
            one = told.get(self.ids[at], {})
            cells = [one.get(name, "") for name in names]
            rows.append([self.ids[at], self.kinds[at], values[0], values[-1], *values, *cells])
        return columns, rows

    def by_class(self, names: Sequence[str]) -> Table | None:
        """What became of how many examples of each class; None for a task whose examples have no single class."""
        found: dict[int, dict[str, int]] = {}
        kinds = dict(zip(self.ids, self.kinds, strict=True))
        for row in _rows(self.last, set(self.ids)):
            label = row.get("reference")
            if not isinstance(label, int) or isinstance(label, bool):
                return None
            counts = found.setdefault(label, {})
            counts[kinds[int(row["id"])]] = counts.get(kinds[int(row["id"])], 0) + 1
        rows = [
            [
                names[label] if label < len(names) else str(label),
                sum(counts.values()),
                *(counts.get(kind, 0) for kind in KINDS),
            ]
            for label, counts in sorted(found.items())
        ]
        return ["class", "examples", *KINDS], rows


def example_history(run: Run, limit: int = MAX_ROWS) -> Table | None:
    """`History.table`; None where there is no history, or its predictions cannot be read."""
    try:
        history = History.read(run)
        return None if history is None else history.table(limit)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def history_tables(run: Run) -> dict[str, Table]:
    """{"examples", "examples_per_class"}, as far as they are known."""
    try:
        history = History.read(run)
        if history is None:
            return {}
        classes = history.by_class(class_names(run))
        return {"examples": history.table(), **({"examples_per_class": classes} if classes else {})}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def left_out(run: Run) -> str:
    """Why the examples of a run are not followed over its evaluations; "" where they are."""
    files = _chosen(prediction_files(run.predictions))
    size = sum(file.stat().st_size for file, _ in files)
    limit = f"examples are followed over evaluations of at most {format_bytes(MAX_BYTES)}"
    return f"the predictions have {format_bytes(size)}: {limit}" if size > MAX_BYTES else ""


def sample_predictions(file: Path, limit: int) -> Table | None:
    """(columns, rows) of at most `limit` examples, spread evenly over the split: the same ones at every evaluation.

    columns: id, loss per unit, then what the evaluation says of the example. None where the file cannot be read.
    """
    try:
        ids = sorted(_ids(file))
        kept = (
            {ids[at] for at in np.unique(np.linspace(0, len(ids) - 1, min(limit, len(ids))).astype(int))}
            if ids
            else set()
        )
        found = {int(row["id"]): row for row in _rows(file, kept)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    told = {id: describe(row) for id, row in found.items()}
    names = _ordered({name for one in told.values() for name in one})
    rows = [[id, float(f"{_loss(found[id]):.5g}"), *(told[id].get(name, "") for name in names)] for id in sorted(found)]
    return (["id", "loss", *names], rows) if rows else None


def boxes_of(file: Path, ids: set[int]) -> dict[int, dict[str, Any]]:
    """id -> {"predictions", "ground_truth"}: the boxes that an evaluation found in some images, and those that are there. {}
    for other tasks, and where the file cannot be read.
    """
    try:
        rows = {int(row["id"]): row for row in _rows(file, ids) if "detections" in row}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
    names = {"predictions": "detections", "ground_truth": "objects"}
    return {id: {kind: row[name] for kind, name in names.items() if name in row} for id, row in rows.items()}


def describe(row: dict[str, Any]) -> dict[str, Any]:
    """What a line of predictions says of its example, for people: texts shortened, and numbers."""
    shown: dict[str, Any] = {}
    for name in dict.fromkeys((*TEXTS, *ANSWERS)):
        value = row.get(name)
        if isinstance(value, str):
            shown[name] = value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}…"
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            shown[name] = value
    return shown


def prediction_files(folder: Path) -> list[tuple[Path, int]]:
    """(file, step) of the evaluations of the validation split, by step."""
    files = [(file, file.stem.rpartition("-")[2]) for file in folder.glob("validation-step-*.jsonl")]
    return sorted(
        ((file, int(step)) for file, step in files if step.isdecimal() and len(step) < 16), key=lambda one: one[1]
    )


def _ordered(names: set[str]) -> list[str]:
    return [name for name in dict.fromkeys((*TEXTS, *ANSWERS)) if name in names]


def _kind(losses: np.ndarray) -> str:
    first, last = float(losses[0]), float(losses[-1])
    if last > WORSE * first:
        return "got worse"
    if last <= LEARNED * first:
        return "learned"
    return "never learned" if float(losses.min()) > LEARNED * first else "learned and forgotten"


def _chosen(files: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    if len(files) <= MAX_EVALUATIONS:
        return files
    kept = np.unique(np.linspace(0, len(files) - 1, MAX_EVALUATIONS).astype(int))
    return [files[at] for at in kept]


def _losses(file: Path) -> Iterator[tuple[int, float]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield int(row["id"]), _loss(row)


def _loss(row: dict[str, Any]) -> float:
    return float(row["loss"]) / max(int(row["weight"]), 1)


def _ids(file: Path) -> Iterator[int]:
    with file.open("rb") as lines:
        for line in lines:
            if found := _ID.match(line):
                yield int(found[1])


def _rows(file: Path, ids: set[int]) -> Iterator[dict[str, Any]]:
    """The lines of some examples."""
    with file.open("rb") as lines:
        for line in lines:
            if (found := _ID.match(line)) and int(found[1]) in ids:
                yield json.loads(line)
