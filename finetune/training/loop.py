"""The loop: global steps, evaluations, checkpoints. It does not ask which task it runs, nor how many ranks there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.distributed.engines.engine import Engine
from finetune.errors import Stopped
from finetune.events import Listener
from finetune.metrics.evaluation import Evaluation, EvaluationStopped
from finetune.recipe.identity import training_values
from finetune.tasks.choice import choosing_metric
from finetune.tasks.prepared_task import PreparedTask
from finetune.training.cadences import Cadences
from finetune.training.checkpoint import Saver, check_space
from finetune.training.checkpoint_manifest import Checkpoint, checkpoint_name
from finetune.training.checkpoint_reader import load_checkpoint
from finetune.training.checkpoint_writer import clear_leftovers
from finetune.training.finite_check import FiniteCheck
from finetune.training.learning_rate import learning_rate
from finetune.training.progress import Outcome, Progress
from finetune.training.samples import Samples
from finetune.training.step import StepResult, seed_step, train_step
from finetune.training.step_logger import StepLogger
from finetune.training.step_source import StepBatches, StepSource
from finetune.training.stop import StopRequest
from finetune.training.validator import SplitEvaluator, Validator


@dataclass(frozen=True)
class OutputDirs:
    """Where the loop writes: folders inside the run folder."""

    checkpoints: Path
    predictions: Path


class Loop:
    """One training. All ranks make one and call `run`."""

    def __init__(
        self,
        prepared: PreparedTask,
        engine: Engine,
        source: StepSource,
        evaluator: SplitEvaluator,
        *,
        output_dirs: OutputDirs,
        listener: Listener,
        stop: StopRequest,
    ) -> None:
        """listener: a SilentListener on all ranks but 0."""
        self.prepared, self.engine, self.source, self.session = prepared, engine, source, engine.session
        self.recipe = recipe = prepared.plan.recipe
        self.output_dirs, self.listener, self.stop = output_dirs, listener, stop
        self.total_steps, self.validates = source.length.total_steps, "validation" in prepared.datasets
        self.cadences = Cadences.of(recipe, source.length)
        self.progress = Progress(*choosing_metric(prepared.plan, prepared.artifacts))
        self.step_logger = StepLogger(self.session, listener, source.length, recipe.tracking.log_every)
        self.validator = Validator(prepared, evaluator, self.step_logger, output_dirs.predictions)
        self.samples = Samples(prepared, engine, self.step_logger, output_dirs.predictions / "pictures")
        self.saver = Saver(
            engine,
            output_dirs.checkpoints,
            training=training_values(recipe),
            keep=recipe.checkpoint.keep,
            published=lambda saved, best: listener.checkpoint(saved.path, step=saved.step, best=best),
        )
        self.finite_check = FiniteCheck(engine, self.saver)
        self.lags = self.session.device.type == "cuda"  # behind the host that feeds it

    def run(self, resume: Checkpoint | None, best: Checkpoint | None, facts: dict[str, Any]) -> Outcome:
        """Train to the end, from `resume` if given. Raises: Stopped, TrainingFailed."""
        self._resume(resume, best)
        if self.session.is_main:
            clear_leftovers(self.output_dirs.checkpoints)
        check_space(
            self.engine,
            self.output_dirs.checkpoints,
            optimizer=self.recipe.training.optimizer,
            copies=self.recipe.checkpoint.keep + 2,
        )
        self.listener.started(
            start_step=self.progress.step,
            total_steps=self.total_steps,
            steps_per_epoch=self.source.length.steps_per_epoch,
            facts={**facts, **self.source.facts},
        )
        self.engine.model.train()  # what is loaded pretrained comes in evaluation mode
        if self.progress.step == 0:
            self.samples.show("before", 0)
            if self.recipe.evaluation.at_start and self.validates:
                self.measure("validation")  # no checkpoint has these weights, so they are never the best ones
        if self.progress.unevaluated:
            self.listener.message(f"evaluating step {self.progress.step} first: the run was stopped before that")
            self._evaluate_and_save()
        for result in self.steps():
            self.progress.unevaluated = self.cadences.due(self.progress.step).evaluate and self.validates
            if result.stop:
                self._save_for_stop()
            self._evaluate_and_save()
        return self._finish()

    def _save_for_stop(self) -> None:
        """Save at once: an evaluation may take longer than the process is given. A resumed run evaluates first.

        Raises: Stopped, unless nothing is left but to write what came of the training.
        """
        self._save_hurriedly()
        if self.progress.step < self.total_steps or self.progress.unevaluated:
            raise self._stopped()

    def _save_hurriedly(self) -> None:
        """The checkpoint of this step, unless it is there: a run that resumed from it may not have come further."""
        self.saver.finish()
        latest = self.saver.latest
        if latest is None or latest.path != self.output_dirs.checkpoints / checkpoint_name(self.progress.step):
            self.save(hurry=True)
            self.saver.finish()

    def _stopped(self) -> Stopped:
        """How the training ends: with the checkpoint of this step saved."""
        later = "; it is evaluated when the run resumes" if self.progress.unevaluated else ""
        done = f"stopped after step {self.progress.step} of {self.total_steps}"
        return Stopped(f"{done}; its checkpoint is saved{later}")

    def _evaluate_and_save(self) -> None:
        """What is due after the step that was done last."""
        improved = self.progress.unevaluated and self._evaluate()
        if improved or self.cadences.due(self.progress.step).save:
            self.save(best=improved)

    def _resume(self, resume: Checkpoint | None, best: Checkpoint | None) -> None:
        self.saver.latest, self.saver.best = resume, best
        if resume is not None:
            load_checkpoint(self.engine, resume)
            self.progress.restore(resume.manifest.loop)
            self.progress.unevaluated &= self.validates
            if best is None:
                self.progress.forget_best()

    def steps(self) -> Iterator[StepResult]:
        """Train step after step, from `progress.step` to the end: each step's result, once it is done. All ranks call it.

        While one step is computed, the next one's batches are fetched.
        """
        batches = self.source.open(self.progress.step, self.listener.message)
        batches.fetch()
        early = self.recipe.training.early_stopping
        while self.progress.step < self.total_steps and not self.progress.exhausted(early):
            yield self._step(batches)

    def _step(self, batches: StepBatches) -> StepResult:
        """One optimizer step; meanwhile the next one is fetched."""
        step, own = batches.take()
        progress, timing, number = self.progress, self.step_logger.timing, self.progress.step + 1
        due = self.cadences.due(number)
        rate = learning_rate(step.index, self.total_steps, self.recipe.training)
        self.engine.set_learning_rate(rate)
        seed_step(self.recipe.seed, step.index, self.session.replica)
        started = timing.start(number, traced=self.source.rank_speed.measuring)
        result = train_step(
            self.prepared.task,
            self.prepared.artifacts,
            self.engine,
            own,
            dummies=step.dummies,
            stop=self.stop.requested,
            busy=self.saver.busy,
            meanwhile=batches.fetch,
        )
        if self.saver.under_way and not result.busy:
            self.saver.advance()
        self.finite_check.note(result, number, now=any(due) or result.stop or not self.lags)
        data = batches.waited() if due.log or not self.lags else 0.0  # reading a GPU's events waits for them
        seconds = timing.end(started, data=data, idle=result.waiting_seconds)
        progress.count_step(result.units, seconds)
        figures = {"learning_rate": rate, "cost_imbalance": step.imbalance}
        self.step_logger.step(number, result, figures, seconds=seconds, logged=due.log)
        if report := self.source.rank_speed.note(step.index, step.cost, result, timing.own_seconds):
            self.listener.message(report)
        return result

    def _evaluate(self) -> bool:
        """Evaluate the validation data; whether it is the best so far. Raises: Stopped."""
        result = self.measure("validation")
        early = self.recipe.training.early_stopping
        return self.progress.judge(result.scalars, early.min_delta if early else 0.0)

    def measure(self, split: str) -> Evaluation:
        """Evaluate one split with the weights as they are, and report it. All ranks call it.

        Raises: Stopped where a rank was asked to stop meanwhile. The training is saved as it was before: a run that resumes
        evaluates from the beginning.
        """
        step = self.progress.step
        try:
            result = self.validator.measure(split, step, self.source.rank_speed.at(step))
        except EvaluationStopped:
            raise self._stopped_in_evaluation(split) from None
        for line in self.progress.undefined_in_words(result, self.recipe.training.early_stopping):
            self.listener.message(line)
        return result

    def _stopped_in_evaluation(self, split: str) -> Stopped:
        if self.progress.unevaluated:
            self._save_hurriedly()
            return self._stopped()
        if self.progress.step == 0:
            return Stopped("stopped before the first step; the evaluation before it begins anew when the run resumes")
        return Stopped(f"stopped after training, in the evaluation of {split}, which begins anew when the run resumes")

    def save(self, *, best: bool = False, hurry: bool = False) -> None:
        """Begin a checkpoint of this step, see Saver.begin. best: its evaluation is the best so far. All ranks call it."""
        self.engine.align_buffers()
        self.saver.begin(self.progress.step, self.progress.to_dict(), best=best, hurry=hurry)

    def _finish(self) -> Outcome:
        """Leave the engine with the weights of the best evaluation."""
        self.saver.finish()
        if self.saver.latest is None or self.saver.latest.step != self.progress.step:
            self.save()
            self.saver.finish()
        self.saver.close()
        best = self.saver.best
        if best is not None and best.step != self.progress.step:
            load_checkpoint(self.engine, best)
        self.samples.show("after", self.progress.step)
        return self.progress.outcome(best.step if best is not None else self.progress.step)
