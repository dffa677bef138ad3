"""The figures of one evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WORST_EXAMPLES = "worst_examples"  # the table that every task has


@dataclass(frozen=True)
class Evaluation:
    """The same on every rank, except for tables, which only rank 0 has. scalars: "loss" and the metrics."""

    split: str
    scalars: dict[str, float]
    num_examples: int
    tables: dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = field(default_factory=dict)
