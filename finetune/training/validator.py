"""Evaluations during a training: each is measured, and reported as a row, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from finetune.data.table import Examples
from finetune.metrics.evaluation import WORST_EXAMPLES, Evaluation
from finetune.tasks.prepared_task import PreparedTask
from finetune.training.step_logger import StepLogger
from finetune.training.worst_pictures import WorstPictures


class SplitEvaluator(Protocol):
    """What measures a split; see inference/evaluation.py."""

    def evaluate(
        self, split: str, examples: Examples, *, out: Path | None = None, speeds: Sequence[float] | None = None
    ) -> Evaluation:
        """Loss and metrics over a split; predictions into `out`. All ranks call it."""
        ...


class Validator:
    """Evaluates splits of the data. All ranks make one and call it alike; rank 0 reports."""

    def __init__(
        self, prepared: PreparedTask, evaluator: SplitEvaluator, step_logger: StepLogger, predictions: Path
    ) -> None:
        """predictions: the folder that predictions, and pictures of the worst examples, are written to."""
        self.datasets, self.evaluator, self.step_logger = prepared.datasets, evaluator, step_logger
        self.predictions = predictions
        self._pictures: WorstPictures | None = None
        if prepared.task.card.batches.decodes:
            folder = predictions / "pictures" / "examples"
            self._pictures = WorstPictures(prepared.artifacts, folder, step_logger.telemetry)

    def measure(self, split: str, step: int, speeds: Sequence[float] | None) -> Evaluation:
        """Evaluate a split with the weights as they are after `step` steps. speeds: of the ranks; None: equal.

        Raises: EvaluationStopped on all ranks where one was asked to stop; nothing is reported then.
        """
        examples = self.datasets[split]
        out = self.predictions / f"{split}-step-{step:08d}.jsonl"
        result = self.evaluator.evaluate(split, examples, out=out, speeds=speeds)
        if self.step_logger.session.is_main:
            self._report(result, split, step)
        return result

    def _report(self, result: Evaluation, split: str, step: int) -> None:
        self.step_logger.row(step, split, result.scalars)
        prefix = "" if split == "validation" else f"{split}_"
        for name, table in result.tables.items():
            if name == WORST_EXAMPLES and self._pictures is not None:
                table = self._pictures.add(split, self.datasets[split], table)
            columns, rows = table
            self.step_logger.listener.table(prefix + name, step=step, columns=columns, rows=rows)
