"""The loss of each validation example over the evaluations of a run: which were learned, which never, which got worse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from finetune.tracking.run import Run

MAX_EVALUATIONS = 20  # the first, the last, and some between
MAX_ROWS = 500
MAX_BYTES = 256 << 20  # of predictions that are read
WORSE = 1.1  # times the first loss
LEARNED = 0.5  # times the first loss
TEXTS = ("text", "source", "image", "input")
ANSWERS = ("label", "predicted", "text", "value")

Table = tuple[list[str], list[list[Any]]]


def example_history(run: Run, limit: int = MAX_ROWS) -> Table | None:
    """(columns, rows) with the examples that changed for the worse first, then those that were never learned. None without
    two evaluations of the same examples, or where they are too large to be read for this.

    columns: id, what became of it, the loss per unit at the first and the last evaluation, one column for each evaluation,
    and what the last evaluation says of it.
    """
    files = _chosen(sorted(run.predictions.glob("validation-step-*.jsonl")))
    if len(files) < 2 or sum(file.stat().st_size for file in files) > MAX_BYTES:
        return None
    try:
        losses = [dict(_losses(file)) for file in files]
        common = sorted(set.intersection(*(set(one) for one in losses)))
        if not common:
            return None
        table = np.array([[one[id] for id in common] for one in losses], np.float64).T
        kinds = [_kind(row) for row in table]
        rank = {"got worse": 0, "never learned": 1, "learned": 3}
        order = sorted(range(len(common)), key=lambda at: (rank.get(kinds[at], 2), -float(table[at, -1])))[:limit]
        told = _told(files[-1], {common[at] for at in order})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    steps = [f"step {int(file.stem.rpartition('-')[2]):,}" for file in files]
    names = sorted({name for one in told.values() for name in one})
    columns = ["id", "what became of it", "first loss", "last loss", *steps, *names]
    rows = []
    for at in order:
        values = [float(f"{value:.5g}") for value in table[at]]
        one = told.get(common[at], {})
        rows.append([common[at], kinds[at], values[0], values[-1], *values, *(one.get(name, "") for name in names)])
    return columns, rows


def count_kinds(run: Run) -> dict[str, int]:
    """What became of how many examples; {} where that is not known."""
    table = example_history(run, limit=1 << 30)
    found: dict[str, int] = {}
    for row in table[1] if table else []:
        found[row[1]] = found.get(row[1], 0) + 1
    return found


def _kind(losses: np.ndarray) -> str:
    first, last = float(losses[0]), float(losses[-1])
    if last > WORSE * first:
        return "got worse"
    if last <= LEARNED * first:
        return "learned"
    return "never learned" if float(losses.min()) > LEARNED * first else "learned and forgotten"


def _chosen(files: list[Path]) -> list[Path]:
    if len(files) <= MAX_EVALUATIONS:
        return files
    kept = np.unique(np.linspace(0, len(files) - 1, MAX_EVALUATIONS).astype(int))
    return [files[at] for at in kept]


def _losses(file: Path) -> Iterator[tuple[int, float]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield int(row["id"]), float(row["loss"]) / max(int(row["weight"]), 1)


def _told(file: Path, ids: set[int]) -> dict[int, dict[str, str]]:
    """What the predictions of one evaluation say of some examples, for people."""
    found = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["id"] in ids:
                named = {
                    name: row[name] for name in dict.fromkeys((*TEXTS, *ANSWERS)) if isinstance(row.get(name), str)
                }
                found[int(row["id"])] = {name: value[:400] for name, value in named.items()}
    return found
