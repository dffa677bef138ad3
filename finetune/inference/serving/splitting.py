"""Rows of requests in pieces: the RowSplitter of a replica, whose threads each have their own tokenizer and images."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.table import Row
from finetune.inference.answering import PIECE, Outcome, Part, RowSplitter
from finetune.inference.pieces.images import ImageTiles
from finetune.inference.pieces.options import PieceOptions
from finetune.inference.pieces.splitter import make_splitter
from finetune.inference.whole_rows import ROW
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.task import Encoded, Task

KEPT_IMAGES = (
    4  # of the largest size that the server takes: decoded images that are kept while their tiles are answered
)


class ServedPieces:
    """A RowSplitter that several threads may use.

    A row that is not cut is loaded where it is split, so that its image is decoded while the model answers others. Pieces
    are loaded shortly before they are answered: a tile in memory takes as much as the image that it was cut out of.
    """

    def __init__(self, task: Task, artifacts: TaskArtifacts, options: PieceOptions, *, pixels: int) -> None:
        """pixels: of the largest image. Raises: UserError for options that do not fit the task or the model."""
        self._task, self._artifacts, self._options, self._pixels = task, artifacts, options, pixels
        self._own = threading.local()
        self._make()

    def split(self, rows: Sequence[Row], *, with_targets: bool = False) -> list[list[dict[str, Any]] | BadRow]:
        """See RowSplitter."""
        return [self._ready(item) for item in self._splitter.split(rows, with_targets=with_targets)]

    def _ready(self, item: list[dict[str, Any]] | BadRow) -> list[dict[str, Any]] | BadRow:
        if isinstance(item, BadRow) or len(item) > 1:
            return item
        (example,) = self._splitter.load([{"id": 0, **item[0]}])
        return example if isinstance(example, BadRow) else [example]

    def load(self, examples: Sequence[dict[str, Any]]) -> list[Encoded]:
        """See RowSplitter. Examples that are loaded already stay as they are."""
        return [self._splitter.load([example])[0] if ROW in example else example for example in examples]

    def merge(self, row: int, parts: Sequence[Part]) -> Outcome:
        """See RowSplitter."""
        return self._splitter.merge(row, parts)

    def forget(self) -> None:
        """Free the images that this thread keeps."""
        if isinstance(self._splitter, ImageTiles):
            self._splitter.forget()

    @property
    def _splitter(self) -> RowSplitter:
        if not hasattr(self._own, "splitter"):
            self._own.splitter = self._make()
        own: RowSplitter = self._own.splitter
        return own

    def _make(self) -> RowSplitter:
        artifacts = replace(self._artifacts, processor=copy.deepcopy(self._artifacts.processor))
        splitter = make_splitter(self._task, artifacts, self._options)
        if isinstance(splitter, ImageTiles):
            splitter.kept_pixels = KEPT_IMAGES * self._pixels
        return splitter


def merge_pieces(splitter: RowSplitter, examples: Sequence[dict[str, Any]], outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a row, from those of its examples."""
    if PIECE not in examples[0]:
        return outcomes[0]
    parts = [Part(example[PIECE], outcome) for example, outcome in zip(examples, outcomes, strict=True)]
    return splitter.merge(0, parts)
