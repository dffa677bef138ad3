"""The figures of one evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class EvaluationStopped(Exception):
    """An evaluation was left before its end, by all ranks, because one was asked to stop: it has no figures, and no file."""


WORST_EXAMPLES = "worst_examples"  # the table that every task has


@dataclass(frozen=True)
class Evaluation:
    """The same on every rank, except for tables and undefined, which only rank 0 has. scalars: "loss" and the metrics.
    undefined: metric -> why it has no value for these examples.
    """

    split: str
    scalars: dict[str, float]
    num_examples: int
    tables: dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)

    def undefined_in_words(self) -> dict[str, str]:
        """metric -> "pearson is undefined for validation: fewer than two examples, or ..."."""
        return {name: f"{name} is undefined for {self.split}: {reason}" for name, reason in self.undefined.items()}
