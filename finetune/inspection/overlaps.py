"""Rows that are alike: exact duplicates within the training data, copies of it in other splits, and near ones of both."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from finetune.inspection.similar import MAX_CANDIDATES, SimilarTexts
from finetune.inspection.split import InspectedSplit


@dataclass
class Overlaps:
    """Pairs (row, other row) and, where they are near, their similarity; the other row stands in the training data.

    exact, near: within train. leaks, near_leaks: split -> rows of it. sampled: split -> "200,000 of 1,000,000 rows" where
    near duplicates were searched among a sample.
    """

    exact: list[tuple[int, int]] = field(default_factory=list)
    near: list[tuple[int, int, float]] = field(default_factory=list)
    leaks: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    near_leaks: dict[str, list[tuple[int, int, float]]] = field(default_factory=dict)
    sampled: dict[str, str] = field(default_factory=dict)


def find_overlaps(splits: dict[str, InspectedSplit]) -> Overlaps:
    """Compares all rows of train with each other, and those of the other splits with them."""
    train, found, index = splits["train"], Overlaps(), SimilarTexts()
    first_of: dict[int, int] = {}
    repeated = np.zeros(len(train.table), bool)
    for row, value in enumerate(train.contents.hashes.tolist()):
        if value and (first := first_of.setdefault(value, row)) != row:
            found.exact.append((row, first))
            repeated[row] = True
    _note_sample(train, found)
    if train.contents.signatures is not None:
        pairs = index.insert("train", train.contents.signatures, skip=repeated, compare=True)
        found.near = [(row, other, share) for row, _, other, share in pairs]
        if index.crowded:
            few = MAX_CANDIDATES
            crowd = f"{index.crowded:,} rows of train that resemble more than {few} others, with {few} of them"
            found.sampled["train"] = "; ".join(filter(None, (found.sampled.get("train", ""), crowd)))
    for name, split in splits.items():
        if name == "train":
            continue
        known = [
            (row, first_of[value]) for row, value in enumerate(split.contents.hashes.tolist()) if value in first_of
        ]
        found.leaks[name] = known
        leaked = np.zeros(len(split.table), bool)
        leaked[[row for row, _ in known]] = True
        _note_sample(split, found)
        if split.contents.signatures is not None:
            near = index.compare(split.contents.signatures, skip=leaked)
            found.near_leaks[name] = [(row, other, share) for row, _, other, share in near]
    return found


def _note_sample(split: InspectedSplit, found: Overlaps) -> None:
    signatures = split.contents.signatures
    if signatures is not None and not signatures.chosen.all():
        found.sampled[split.name] = (
            f"{int(signatures.chosen.sum()):,} of {len(signatures.chosen):,} rows of {split.name}"
        )
