"""One way to run batches through a model: for evaluation, for reference log-probabilities, and for prediction."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from finetune.data.order.loader import RankStep, iterate_batches
from finetune.data.table import Examples
from finetune.distributed.engines.engine import Engine
from finetune.distributed.prefetcher import Prefetcher
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Batch
from finetune.tasks.task import Task


@dataclass(frozen=True)
class Result:
    """A micro-batch on the device, and the model's outputs for it.

    counts: its examples are this rank's to report. Otherwise it is a dummy, run so that collectives stay aligned, or
    another rank of the replica has its outputs.
    """

    batch: Batch
    outputs: Any
    counts: bool


class BatchRunner:
    """Runs micro-batches in evaluation mode and without gradients. All ranks make one."""

    def __init__(self, task: Task, artifacts: TaskArtifacts, engine: Engine) -> None:
        self.task, self.artifacts, self.engine = task, artifacts, engine

    def run(
        self, examples: Examples, steps: Iterator[RankStep], *, workers: int = 0
    ) -> Generator[Result | None, None, None]:
        """For each step of one micro-batch its result; None for a dummy where the model needs no lockstep.

        workers: processes that fetch examples and collate them; 0: this one does, while the device works. All ranks iterate
        equally often. The next micro-batch is collated while the device works on this one. The model is in its former mode
        again afterwards: once all results are taken, or the generator is closed.
        """
        session = self.engine.session
        batches = iterate_batches(
            examples,
            partial(self.task.collate, self.artifacts),
            steps,
            workers=workers,
            pin_memory=session.device.type == "cuda",
        )
        prefetcher = Prefetcher(batches, session.device)
        was_training = self.engine.model.training
        self.engine.model.eval()
        try:
            while True:
                try:
                    step, (batch,) = prefetcher.take()
                except StopIteration:
                    return
                yield self._result(batch, prefetcher, is_dummy=not step.micro_batches[0])
        finally:
            self.engine.model.train(was_training)

    def _result(self, batch: Batch, prefetcher: Any, *, is_dummy: bool) -> Result | None:
        if is_dummy and not self.engine.shards_weights:
            return None
        with torch.no_grad():
            moved = batch.to(self.engine.session.device)
            outputs = self.task.forward(self.engine.model, moved)
        prefetcher.fetch()  # a GPU still works on this one
        return Result(moved, outputs, counts=not is_dummy and self.engine.owns_outputs)
