"""TensorBoard: event files in RUN/tensorboard/."""

from __future__ import annotations

import shutil
from typing import Any

from finetune.tracking.accelerate_tracker import AccelerateTracker


class TensorBoard(AccelerateTracker):
    """A resumed run writes its files anew from metrics.jsonl, so that they never hold steps that were undone."""

    name, kind = "tensorboard", "TensorBoardTracker"

    def _make(self, kind: Any) -> Any:
        if self._run.tensorboard.is_dir():
            shutil.rmtree(self._run.tensorboard)
        return kind(run_name=self._run.tensorboard.name, logging_dir=str(self._run.path))
