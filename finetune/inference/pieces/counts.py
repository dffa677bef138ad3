"""Counts of the rows that were cut into pieces, for the report at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.inference.answering import PIECE
from finetune.units import format_number


@dataclass
class CutRows:
    """Counts over the rows of an input. rows: cut into pieces; pieces: of them; most: of one row; shortened: rows of which
    the middle was left out (head and tail); left_out: tokens of them.
    """

    rows: int = 0
    pieces: int = 0
    most: int = 0
    shortened: int = 0
    left_out: int = 0

    def add(self, examples: Sequence[Mapping[str, Any]]) -> None:
        """The examples of a row, as RowSplitter.split made them."""
        if not examples or PIECE not in examples[0]:
            return
        if examples[0][PIECE].get("left_out"):
            self.shortened += 1
            self.left_out += int(examples[0][PIECE]["left_out"])
            return
        self.rows += 1
        self.pieces += len(examples)
        self.most = max(self.most, len(examples))

    def add_all(self, rows: Sequence[object]) -> None:
        """Several rows; errors in place of examples do not count."""
        for examples in rows:
            if isinstance(examples, list):
                self.add(examples)

    def report(self) -> list[str]:
        """Sentences for people; [] if nothing was cut."""
        lines = []
        if self.rows:
            cut = "1 row was" if self.rows == 1 else f"{self.rows:,} rows were"
            mean = self.pieces / self.rows
            lines.append(f"{cut} cut into {self.pieces:,} pieces ({mean:.1f} per row, at most {self.most:,})")
        if self.shortened:
            rows = "1 row" if self.shortened == 1 else f"{self.shortened:,} rows"
            lines.append(f"of {rows} the middle was left out (head and tail): {format_number(self.left_out, 'token')}")
        return lines
