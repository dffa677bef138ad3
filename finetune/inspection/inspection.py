"""The inspection of a recipe's data: all splits, how they overlap, and training texts beside prompts of inference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from finetune.data.table import Table
from finetune.inspection.findings import MAX_ROWS, Finding, Severity
from finetune.inspection.overlaps import Overlaps, find_overlaps
from finetune.inspection.prompts import PromptComparison, compare_prompts
from finetune.inspection.split import InspectedSplit, Tick, inspect_split
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.task import Datasets

FoundRow = tuple[InspectedSplit, int]


@dataclass
class Inspection:
    """Everything that checks and reports read. notes: what preparing the data reported, for people.

    stops: whether training would end with an error at a bad row (data.on_bad_row: error).
    """

    task: Any
    plan: Plan
    artifacts: TaskArtifacts
    splits: dict[str, InspectedSplit]
    overlaps: Overlaps
    prompts: list[PromptComparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stops: bool = True

    @property
    def train(self) -> InspectedSplit:
        return self.splits["train"]


def inspect_data(
    task: Any,
    plan: Plan,
    artifacts: TaskArtifacts,
    tables: Mapping[str, Table],
    datasets: Datasets,
    *,
    notes: Sequence[str] = (),
    stops: bool = True,
    tick: Tick = lambda what, done, total: None,
) -> Inspection:
    """Read everything once. tick: is called with the progress."""
    splits = {name: inspect_split(task, plan, artifacts, table, datasets[name], tick) for name, table in tables.items()}
    tick("comparing rows", 0, len(tables["train"]))
    overlaps = find_overlaps(splits)
    prompts = compare_prompts(task, artifacts, splits["train"], plan.recipe.seed)
    return Inspection(task, plan, artifacts, splits, overlaps, prompts, list(notes), stops)


def report_rows(
    kind: str,
    severity: Severity,
    what: str,
    rows: Iterable[FoundRow],
    note: Callable[[InspectedSplit, int], str] = lambda split, row: "",
    *,
    remedy: str = "",
    sampled: str = "",
) -> list[Finding]:
    """One finding over (split, row id) pairs, or none without any; the notes of the first 1,000 rows are written out."""
    found = list(rows)
    if not found:
        return []
    listed = tuple(split.ref(row, note(split, row)) for split, row in islice(found, MAX_ROWS))
    return [Finding(kind, severity, what, listed, len(found), remedy, sampled)]
