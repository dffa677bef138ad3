"""Evaluation: every example exactly once on any number of ranks; ids prove it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetune.data.order.assignment import Assignment, assign_evaluation
from finetune.data.order.cost import CostModel
from finetune.data.order.loader import choose_workers, evaluation_steps
from finetune.data.table import Examples
from finetune.distributed.engines.engine import Engine
from finetune.distributed.stop_agreement import Asked, Leaving, StopAgreement
from finetune.errors import TrainingFailed, UserError
from finetune.inference.runner import BatchRunner, Result
from finetune.inference.tally import Tally
from finetune.metrics.catalogue import needs_text
from finetune.metrics.evaluation import Evaluation, EvaluationStopped
from finetune.planning.plan import Plan
from finetune.recipe.quotas import threads_each
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Answer, Score
from finetune.tasks.task import Task, as_writing_task, merge_texts

WORTH_A_WORKER = 256  # examples: fewer are decoded sooner than another process is started
GATHER_EVERY = 8  # micro-batches whose predictions a rank holds before rank 0 takes them


@dataclass(frozen=True)
class Evaluator:
    """Evaluates splits with one model. All ranks make one and call it alike.

    metrics: names of the catalogue, computed beside the loss. asked_to_stop: whether this rank was, for all ranks to leave an
    evaluation in the middle; None: nobody can ask.
    """

    task: Task
    plan: Plan
    artifacts: TaskArtifacts
    engine: Engine
    cost: CostModel
    metrics: Sequence[str]
    asked_to_stop: Asked | None = None

    def evaluate(
        self,
        split: str,
        examples: Examples,
        *,
        out: Path | None = None,
        speeds: Sequence[float] | None = None,
    ) -> Evaluation:
        """The loss as the sum over global units / global count, and the metrics, over the whole split.

        out: where rank 0 writes one prediction per line. speeds: relative speeds of the ranks; None: equal.
        Raises: UserError for a split without examples; TrainingFailed if an id is missing or came twice; EvaluationStopped
        on all ranks where one was asked to stop before the last prediction was handed over.
        """
        if not len(examples):
            raise UserError(
                f"the split {split} has no usable example to evaluate", remedy="Check the data's path and columns."
            )
        session = self.engine.session
        assignment = self.assign(examples, speeds)
        tally = None
        if session.is_main:
            tally = Tally(self.metrics, examples.ids, out, **self.task.metric_options(self.artifacts))
        self.engine.align_buffers()
        try:
            self._predict(examples, assignment, tally)
        except BaseException:
            if tally is not None:
                tally.abandon()
            raise
        outcome = tally.finish(split) if tally is not None else None
        figures = (outcome.scalars, None) if isinstance(outcome, Evaluation) else ({}, outcome)
        scalars, problem = session.broadcast(figures)
        if problem:
            raise TrainingFailed(problem, where=f"evaluation of {split}")
        return outcome if isinstance(outcome, Evaluation) else Evaluation(split, scalars, len(examples))

    def _predict(self, examples: Examples, assignment: Assignment, tally: Tally | None) -> None:
        """Every example of this rank, and the answers to rank 0. Raises: EvaluationStopped."""
        replica, agreement = self.engine.session.replica, StopAgreement(self.engine, self.asked_to_stop)
        steps = evaluation_steps(assignment, replica)
        workers = self._workers(sum(len(micro) for micro in assignment.ranks[replica]))
        runner = BatchRunner(self.task, self.artifacts, self.engine)
        held: list[tuple[Answer, Score]] = []
        agreement.offer()
        with suppress(Leaving), closing(runner.run(examples, steps, workers=workers)) as results:
            for done, result in enumerate(results, start=1):
                agreement.check()
                if result is not None:
                    held += self._predictions(result, agreement)
                agreement.offer()
                if done % GATHER_EVERY == 0:
                    self._hand_over(held, tally, agreement)
        self._hand_over(held, tally, agreement)

    def assign(self, examples: Examples, speeds: Sequence[float] | None) -> Assignment:
        """Every example to one rank: similar lengths together, and no more tokens at once than in training."""
        lengths = np.asarray(examples.costs, dtype=np.int64)
        micro_batch = self.plan.machine.batch.micro_batch
        if self.plan.training.packing != "none":
            longest = int(lengths.max(initial=1))
            micro_batch = max(1, max(self.plan.training.capacity, longest) // longest)
        return assign_evaluation(self.cost.of(lengths), self.engine.session.replicas, micro_batch, speed=speeds)

    def _workers(self, examples: int) -> int:
        """Loader processes for so many examples of this rank; as in training, as far as they are worth their start."""
        if examples < WORTH_A_WORKER or not self.task.card.batches.decodes:
            return 0
        session, plan = self.engine.session, self.plan
        workers = choose_workers(
            plan.recipe.data.workers,
            decodes=True,
            device=session.device.type,
            cores=threads_each(session.local_world_size),
        )
        return min(workers, examples // WORTH_A_WORKER)

    def _predictions(self, result: Result, agreement: StopAgreement) -> list[tuple[Answer, Score]]:
        """Answers and scores of a micro-batch; [] if they are not this rank's to report."""
        written = None
        with torch.no_grad():
            if needs_text(self.metrics):
                writer, synced = as_writing_task(self.task), self.engine.shards_weights
                with agreement.while_generating():
                    written = writer.generate(self.artifacts, self.engine.module, result.batch, synced=synced)
            if not result.counts:
                return []
            answers = self.task.decode(self.artifacts, result.outputs, result.batch)
            scores = self.task.score(self.artifacts, result.outputs, result.batch)
        if written is not None:
            answers = merge_texts(answers, written)
        return list(zip(answers, scores, strict=True))

    def _hand_over(self, held: list[tuple[Answer, Score]], tally: Tally | None, agreement: StopAgreement) -> None:
        """Rank 0 takes what all ranks hold. All ranks call it. Raises: EvaluationStopped."""
        if agreement.meet():
            raise EvaluationStopped
        for part in self.engine.session.gather(held):
            if tally is not None:
                tally.add(part)
        held.clear()
