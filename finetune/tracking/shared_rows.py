"""Rows of validation and test that are in train as well, as a run's facts have them: said beside each figure of the split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHARED = "{} rows in train"  # name of the fact; its value is "2 of 4 rows"


def shared_with_train(facts: Mapping[str, Any]) -> dict[str, str]:
    """split -> "2 of 4 rows are in train as well". facts: of the run, as `Journal.started` got them."""
    counts = {split: facts.get(SHARED.format(split)) for split in ("validation", "test")}
    return {split: f"{count} are in train as well" for split, count in counts.items() if isinstance(count, str)}


def shared_lines(facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each such split."""
    shared = shared_with_train(facts).items()
    return [f"{split}: {what}, so its figures are not those on new data" for split, what in shared]
