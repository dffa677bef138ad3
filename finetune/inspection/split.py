"""A split as inspected: its rows, its encoded examples, and what the passes over both found. Made once, read by every check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.data.bad_rows import BadRow, Listed
from finetune.data.labels import label_text
from finetune.data.table import Examples, Table
from finetune.inspection.contents import Contents, read_contents
from finetune.inspection.findings import RowRef
from finetune.inspection.left_out import CHECKED, Cut, LeftOut, find_cuts, find_left_out
from finetune.inspection.similar import Signatures
from finetune.inspection.tokens import TokenStatistics, read_tokens
from finetune.planning.plan import Plan
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.text.selection import PARTS

MAX_SIMILAR = 200_000  # rows of a split that near duplicates are searched among; of more, a sample of this many
Tick = Callable[[str, int, int], None]  # (what is done, how many of how many)


@dataclass(eq=False)
class InspectedSplit:
    """row_ids: the row of each example, int64 [examples]. refused: rows that a reader refused (place, reason).

    left_out: rows of the table without an example; left_out_count: how many, also those whose cause was not searched.
    cuts: what the limit on tokens cut; cuts_of: how many of the examples at the limit were looked at.
    labels: names of the labels of each row in `labeled` (row ids); () for tasks without.
    """

    name: str
    table: Table
    examples: Examples
    row_ids: np.ndarray
    contents: Contents
    tokens: TokenStatistics | None
    refused: list[Listed]
    refused_count: int
    left_out: list[LeftOut]
    left_out_count: int
    cuts: list[Cut] = field(default_factory=list)
    cuts_of: int = 0
    labels: list[list[str]] = field(default_factory=list)
    labeled: list[int] = field(default_factory=list)
    bad_boxes: list[tuple[int, str]] = field(default_factory=list)

    def ref(self, row_id: int, note: str = "") -> RowRef:
        """A reference to a row of the table."""
        return RowRef(self.name, row_id, self.table.place(row_id), note)

    def rows_at(self, positions: Iterable[int]) -> list[int]:
        """The rows of the examples at `positions`, each once, in order."""
        return list(dict.fromkeys(int(self.row_ids[position]) for position in positions))


def inspect_split(
    task: Any, plan: Plan, artifacts: TaskArtifacts, table: Table, examples: Examples, tick: Tick
) -> InspectedSplit:
    """The passes over one split: its rows, its examples if they hold tokens, rows left out, and cuts."""
    name, decodes = table.name, task.card.batches.decodes
    ids = np.asarray(examples.ids, np.int64)
    row_ids = ids // PARTS if hasattr(examples, "split_count") else ids
    similar = None if decodes else Signatures(_sample(len(table), plan.recipe.seed))
    roles = task.card.rows.contents
    contents = read_contents(
        table, roles, similar=similar, tick=lambda done: tick(f"{name}: rows read", done, len(table))
    )
    tokens = None
    if not decodes:
        tokens = read_tokens(
            task, artifacts, examples, lambda done: tick(f"{name}: examples read", done, len(examples))
        )
    left_out, left_out_count = find_left_out(task, artifacts, table, np.unique(row_ids))
    refused, refused_count = getattr(table, "skipped", []), getattr(table, "skipped_count", 0)
    split = InspectedSplit(
        name, table, examples, row_ids, contents, tokens, refused, refused_count, left_out, left_out_count
    )
    if tokens is not None and not hasattr(examples, "split_count"):
        chosen = _spread(tokens.at_limit, CHECKED)
        split.cuts, split.cuts_of = find_cuts(task, artifacts, table, chosen, row_ids, examples), len(chosen)
    split.labels, split.labeled = _labels(split, artifacts)
    split.bad_boxes = _bad_boxes(examples, row_ids)
    return split


def _sample(count: int, seed: int) -> np.ndarray:
    """Which of `count` rows take part in the search for near duplicates."""
    chosen = np.ones(count, bool)
    if count > MAX_SIMILAR:
        chosen[:] = False
        chosen[np.random.default_rng(seed).choice(count, MAX_SIMILAR, replace=False)] = True
    return chosen


def _spread(positions: list[int], limit: int) -> list[int]:
    """At most `limit` of the positions, evenly spread."""
    if len(positions) <= limit:
        return positions
    return [positions[index * len(positions) // limit] for index in range(limit)]


def _labels(split: InspectedSplit, artifacts: TaskArtifacts) -> tuple[list[list[str]], list[int]]:
    """(labels of each labeled row, the rows): of the encoded examples, or of the rows where examples are images."""
    if split.tokens is not None:
        labels = split.tokens.labels
        return (labels, split.row_ids.tolist()) if labels is not None else ([], [])
    labels, labeled = [], []
    values = getattr(split.table, "values", None)
    role = "objects" if "objects" in split.table.columns else "label"
    usable = set(split.row_ids.tolist())
    column = values(role) if values is not None else (row.get(role) for row in split.table)
    for row_id, value in enumerate(column):
        if row_id in usable:
            labels.append(_names(value, artifacts))
            labeled.append(row_id)
    return labels, labeled


def _names(value: Any, artifacts: TaskArtifacts) -> list[str]:
    """The classes of one image, by the names that people see."""
    assert artifacts.classes is not None
    if isinstance(value, Mapping):
        value = value.get("category")
    elif isinstance(value, (list, tuple)):
        value = [one.get("category") if isinstance(one, Mapping) else one for one in value]
    found = []
    for one in value if isinstance(value, (list, tuple)) else [value]:
        try:
            found.append(artifacts.labels[artifacts.classes.lookup.index(label_text(one))])
        except BadRow:  # reported as a row, or a box, that cannot be used
            continue
    return found


def _bad_boxes(examples: Any, row_ids: np.ndarray) -> list[tuple[int, str]]:
    """(row id, reason) of boxes that were left out of images that are kept."""
    checked = getattr(getattr(examples, "function", None), "checked", None)
    if checked is None:
        return []
    return [
        (int(row_ids[position]), f"annotation {name}: {why}")
        for position in range(len(checked))
        for name, why in checked[position].get("bad", ())
    ]
