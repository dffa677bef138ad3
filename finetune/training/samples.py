"""A few examples in full, before and after training: a table for the report. What fails here never ends a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.distributed.engines.engine import Engine
from finetune.tasks.prepared_task import PreparedTask
from finetune.tasks.vision.drawing import Pictures
from finetune.training.step_logger import StepLogger

WAIT_SECONDS = 60.0  # for the other ranks, by a rank whose samples failed while they may still need it
NAME = "showing samples"

Sample = dict[str, str]


class Samples:
    """Shows what the model says of the first examples of a split. All ranks make one."""

    def __init__(self, prepared: PreparedTask, engine: Engine, step_logger: StepLogger, pictures: Path) -> None:
        """pictures: the folder that pictures are saved in."""
        self.prepared, self.engine, self.session = prepared, engine, engine.session
        self.listener, self.telemetry = step_logger.listener, step_logger.telemetry
        self.folder = Pictures(pictures) if self.session.is_main else None
        self.pictures: Pictures | None = None  # of the samples that are being taken

    def show(self, when: str, step: int) -> None:
        """A table "samples" of the validation split, or of the training split where there is none. All ranks call it.

        Raises: what one rank's sampling raised while another rank cannot go on without it (ZeRO-3, model splits).
        """
        datasets, count = self.prepared.datasets, self.prepared.plan.recipe.evaluation.samples
        examples = datasets["validation" if "validation" in datasets else "train"]
        chosen = [examples[index] for index in range(min(count, len(examples)))]
        if not chosen:
            return
        self.pictures = self.folder.below(when) if self.folder is not None else None
        shown = self._sample_together(chosen) if self.engine.couples_ranks else self._sample_alone(chosen)
        if self.folder is not None and self.pictures is not None and self.pictures.problem:
            self.folder.problem = self.pictures.problem
            self.telemetry.switch_off("drawing samples", self.pictures.problem)
        if self.session.is_main and shown:
            columns = ["when", *shown[0]]
            rows = [[when, *sample.values()] for sample in shown]
            self.listener.table("samples", step=step, columns=columns, rows=rows)

    def _sample_alone(self, chosen: Sequence[Any]) -> list[Sample]:
        return self.telemetry.run(NAME, lambda: self._sample(chosen), [])

    def _sample_together(self, chosen: Sequence[Any]) -> list[Sample]:
        """A fault that every rank has, or that a rank has after its last collective, switches the samples off. With a
        fault in between, the other ranks wait inside the model for a rank that is not there: that ends the training.
        """
        if self.telemetry.is_off(NAME):
            return []
        fault: Exception | None = None
        shown: list[Sample] = []
        try:
            shown = self._sample(chosen)
        except Exception as error:
            fault = error
        arrived = self.session.store.arrive(NAME, seconds=WAIT_SECONDS if fault else None)
        if fault is not None and not arrived:
            raise fault
        faults = [text for text in self.session.all_gather(f"{type(fault).__name__}: {fault}" if fault else "") if text]
        if faults:
            self.telemetry.switch_off(NAME, faults[0])
        return [] if faults else shown

    def _sample(self, chosen: Sequence[Any]) -> list[Sample]:
        self.engine.model.eval()
        try:
            return self.prepared.task.sample(
                self.prepared.artifacts,
                self.engine.generating_model,
                chosen,
                synced=self.engine.shards_weights,
                pictures=self.pictures,
            )
        finally:
            self.engine.model.train()
