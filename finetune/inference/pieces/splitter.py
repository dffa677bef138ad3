"""The RowSplitter that a user's options ask for, and the count of what was cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.inference.answering import PIECE, RowSplitter
from finetune.inference.pieces.images import DetectionTiles, ImageTiles
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.pieces.texts import TextBlocks
from finetune.inference.pieces.words import WordBlocks
from finetune.inference.whole_rows import WholeRows
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.task import Task

SPLITTERS: Mapping[str, Callable[[Task, TaskArtifacts, PieceOptions], RowSplitter]] = {
    "object_detection": DetectionTiles,
    "image_classification": ImageTiles,
    "text_classification": TextBlocks,
    "sequence_regression": TextBlocks,
    "reward_model": TextBlocks,
    "token_classification": WordBlocks,
}


def make_splitter(task: Task, artifacts: TaskArtifacts, options: PieceOptions | None = None) -> RowSplitter:
    """How rows of a task become examples: whole, unless the options say how to cut them.

    Raises: UserError for options that contradict each other, the task or the model.
    """
    resolved = (options or PieceOptions()).resolve(task.card.name)
    if not resolved.asked:
        return WholeRows(task, artifacts)
    return SPLITTERS[task.card.name](task, artifacts, resolved)


@dataclass
class CutRows:
    """Counts over the rows of an input. rows: cut into pieces; pieces: of them; most: of one row; shortened: rows of which
    the middle was left out (head and tail).
    """

    rows: int = 0
    pieces: int = 0
    most: int = 0
    shortened: int = 0

    def add(self, examples: Sequence[Mapping[str, Any]]) -> None:
        """The examples of a row, as RowSplitter.split made them."""
        if not examples or PIECE not in examples[0]:
            return
        if examples[0][PIECE].get("left_out"):
            self.shortened += 1
            return
        self.rows += 1
        self.pieces += len(examples)
        self.most = max(self.most, len(examples))

    def report(self) -> list[str]:
        """Sentences for people; [] if nothing was cut."""
        lines = []
        if self.rows:
            cut = "1 row was" if self.rows == 1 else f"{self.rows:,} rows were"
            mean = self.pieces / self.rows
            lines.append(f"{cut} cut into {self.pieces:,} pieces ({mean:.1f} per row, at most {self.most:,})")
        if self.shortened:
            rows = "1 row" if self.shortened == 1 else f"{self.shortened:,} rows"
            lines.append(f"of {rows} the middle was left out (head and tail)")
        return lines
