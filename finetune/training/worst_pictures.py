"""Pictures beside the worst examples of an evaluation: a table of numbers does not show why an image is hard."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.table import Examples
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.vision.drawing import Pictures, draw_example
from finetune.training.telemetry import Telemetry

DRAWN = 8  # of an evaluation's worst examples
MAX_FILES = 200  # of a run
NAME = "drawing the worst examples"

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]


class WorstPictures:
    """Saves examples as the model sees them in `folder`, one file per example. Rank 0 only; it asks no other rank."""

    def __init__(self, artifacts: TaskArtifacts, folder: Path, telemetry: Telemetry) -> None:
        self._artifacts, self._telemetry = artifacts, telemetry
        self._pictures = Pictures(folder)

    def add(self, split: str, examples: Examples, table: Table) -> Table:
        """The table with the columns "picture" (a file, "" from the DRAWN-th row on) and, where the boxes of the example
        refer to one, "size" (width x height). Unchanged where nothing could be drawn.
        """
        return self._telemetry.run(NAME, lambda: self._add(split, examples, table), table)

    def _add(self, split: str, examples: Examples, table: Table) -> Table:
        columns, rows = table
        if "id" not in columns:
            return table
        at, ids = list(columns).index("id"), np.asarray(examples.ids)
        added = [self._save(split, examples, ids, int(row[at])) for row in rows[:DRAWN]]
        if not any(added):
            return table
        names = [name for name in ("size", "picture") if any(name in one for one in added)]
        added += [{} for _ in rows[DRAWN:]]
        filled = [[*row, *(one.get(name, "") for name in names)] for row, one in zip(rows, added, strict=True)]
        return [*columns, *names], filled

    def _save(self, split: str, examples: Examples, ids: np.ndarray, id: int) -> dict[str, str]:
        name = f"{split}-{id}.png"
        path = self._pictures.folder / name
        known = path.is_file()
        if not known and self._count() >= MAX_FILES:
            return {}
        example = examples[int(np.searchsorted(ids, id))]
        if "pixel_values" not in example:
            return {}
        saved = (
            {"picture": str(path)}
            if known
            else self._pictures.save(name, partial(draw_example, self._artifacts.processor, example))
        )
        if self._pictures.problem:
            self._telemetry.switch_off(NAME, self._pictures.problem)
        size = example.get("size")
        return {**saved, "size": f"{size[0]}x{size[1]}"} if saved and size is not None else saved

    def _count(self) -> int:
        folder = self._pictures.folder
        return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
