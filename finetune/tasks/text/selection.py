"""Selections of a split's examples: without those that are too long (on_long: drop), or cut into parts (split)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.data.table import Examples

DROPPED = 0  # the cost that marks an example to leave out; every real example costs at least 1


class SelectedExamples:
    """`examples` at the positions `kept`, in order; ids and costs follow."""

    def __init__(self, examples: Examples, kept: Sequence[int] | np.ndarray) -> None:
        self.examples = examples
        self.kept = np.asarray(kept, np.int64)
        self.ids: np.ndarray = np.asarray(examples.ids)[self.kept]
        self.costs: np.ndarray = np.asarray(examples.costs)[self.kept]
        self.skipped_count: int = getattr(examples, "skipped_count", 0)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[int(self.kept[index])]


def drop_marked(examples: Examples) -> tuple[Examples, int]:
    """The examples whose cost is not 0, and how many were left out."""
    kept = np.flatnonzero(np.asarray(examples.costs) != DROPPED)
    left_out = len(examples) - len(kept)
    if not left_out:
        return examples, 0
    return SelectedExamples(examples, kept), left_out


PARTS = 1_000_000  # id of a part: row id x PARTS + index of the part, so that ids stay ascending


class SplitExamples:
    """`examples` of tokens, each cut into parts of at most `limit`; parts without a supervised token are left out.

    {"id": 3, "input_ids": [5, 6, 7, 8, 2], "spans": [1, 5]}, limit 3 -> ids 3000000 and 3000001, input_ids [5, 6, 7] and
    [8, 2], spans [1, 3] and [0, 2]. The first token of a later part has nothing before it and is not supervised.
    split_count: how many are cut.
    """

    def __init__(self, examples: Examples, limit: int) -> None:
        self.examples, self.limit = examples, limit
        self.skipped_count: int = getattr(examples, "skipped_count", 0)
        lengths = np.asarray(examples.costs, np.int64)
        self.split_count = int((lengths > limit).sum())
        counts = -(-lengths // limit)
        rows = np.repeat(np.arange(len(lengths)), counts)
        parts = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = lengths[rows] <= limit  # whole examples; of the others, parts with something to learn
        for index in np.flatnonzero(~kept).tolist():
            kept[index] = bool(self._spans(int(rows[index]), int(parts[index]) * limit))
        self._rows, parts = rows[kept], parts[kept]
        self._starts: np.ndarray = parts * limit
        self.ids: np.ndarray = np.asarray(examples.ids, np.int64)[self._rows] * PARTS + parts
        self.costs: np.ndarray = np.minimum(limit, lengths[self._rows] - self._starts)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, start = int(self._rows[index]), int(self._starts[index])
        example = self.examples[row]
        return {
            **example,
            "id": int(self.ids[index]),
            "input_ids": example["input_ids"][start : start + self.limit],
            "spans": np.array(self._spans(row, start), np.int64),
            "reply_start": max(1, min(int(example["reply_start"]), int(self.costs[index]) - 1)),
        }

    def _spans(self, row: int, start: int) -> list[int]:
        """Supervised tokens of the part, without its first token, in its own positions."""
        kept = []
        for low, high in np.asarray(self.examples[row]["spans"]).reshape(-1, 2).tolist():
            low, high = max(low - start, 0), min(high - start, self.limit)
            if high > max(low, 1):
                kept += [low, high]
        return kept
