"""The RowSplitter that a user's options ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from finetune.inference.answering import RowSplitter
from finetune.inference.pieces.images import DetectionTiles, ImageTiles
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.pieces.texts import TextBlocks
from finetune.inference.pieces.words import WordBlocks
from finetune.inference.whole_rows import WholeRows
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.task import Task

SPLITTERS: Mapping[str, Callable[[Task, TaskArtifacts, PieceOptions], RowSplitter]] = {
    "boxes": DetectionTiles,
    "images": ImageTiles,
    "texts": TextBlocks,
    "words": WordBlocks,
}
"""`AnswerSpec.pieces` -> how rows are cut."""


def make_splitter(task: Task, artifacts: TaskArtifacts, options: PieceOptions | None = None) -> RowSplitter:
    """How rows of a task become examples: whole, unless the options say how to cut them.

    Raises: UserError for options that contradict each other, the task or the model.
    """
    resolved = (options or PieceOptions()).resolve(task.card)
    if not resolved.asked:
        return WholeRows(task, artifacts)
    return SPLITTERS[task.card.answers.pieces](task, artifacts, resolved)
