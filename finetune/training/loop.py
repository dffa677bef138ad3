"""The loop: global steps, evaluations, checkpoints. It does not ask which task it runs, nor how many ranks there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from finetune.data.order.cost import CostModel
from finetune.data.order.loader import RankStep, choose_workers, fetched_ahead, iterate_batches
from finetune.data.table import Examples
from finetune.distributed.engines.engine import Engine
from finetune.distributed.prefetcher import Prefetcher
from finetune.errors import Stopped
from finetune.events import Listener
from finetune.metrics.evaluation import WORST_EXAMPLES, Evaluation
from finetune.planning.plan import Plan
from finetune.recipe.identity import training_values
from finetune.recipe.quotas import threads_each
from finetune.recipe.recipe import Recipe
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Batch
from finetune.tasks.choice import choosing_metric
from finetune.tasks.task import Datasets, Task
from finetune.training.cadences import Cadences, TrainingLength
from finetune.training.checkpoint import Saver, check_space
from finetune.training.checkpoint_manifest import Checkpoint
from finetune.training.checkpoint_reader import load_checkpoint
from finetune.training.checkpoint_writer import clear_leftovers
from finetune.training.finite_check import FiniteCheck
from finetune.training.learning_rate import learning_rate
from finetune.training.microbatch_planner import MicroBatchPlanner
from finetune.training.progress import Outcome, Progress
from finetune.training.rank_speed import RankSpeedEstimator
from finetune.training.samples import Samples
from finetune.training.step import StepResult, seed_step, train_step
from finetune.training.step_logger import StepLogger
from finetune.training.steps import ASSIGNED_AHEAD, ScheduledSteps, StepSource
from finetune.training.stop import StopRequest
from finetune.training.worst_pictures import WorstPictures


@dataclass(frozen=True)
class OutputDirs:
    """Where the loop writes: folders inside the run folder."""

    checkpoints: Path
    predictions: Path


class SplitEvaluator(Protocol):
    """What the loop needs of an evaluation; see inference/evaluation.py."""

    def evaluate(
        self, split: str, examples: Examples, *, out: Path | None = None, speeds: Sequence[float] | None = None
    ) -> Evaluation:
        """Loss and metrics over a split; predictions into `out`. All ranks call it."""
        ...


class Loop:
    """One training. All ranks make one and call `run`."""

    def __init__(
        self,
        task: Task,
        plan: Plan,
        artifacts: TaskArtifacts,
        datasets: Datasets,
        engine: Engine,
        *,
        evaluator: SplitEvaluator,
        cost: CostModel,
        output_dirs: OutputDirs,
        listener: Listener,
        stop: StopRequest,
    ) -> None:
        self.task, self.plan, self.artifacts, self.datasets = task, plan, artifacts, datasets
        self.engine, self.evaluator, self.session = engine, evaluator, engine.session
        self.recipe: Recipe = plan.recipe
        self.planner = MicroBatchPlanner.of(plan, artifacts, engine, datasets["train"].costs, cost)
        self.schedule = self.planner.schedule(self.recipe, plan.training.balance_window)
        self.output_dirs, self.stop = output_dirs, stop
        self.total_steps = plan.training.total_steps(self.schedule.steps_per_epoch)
        length = TrainingLength(self.total_steps, self.schedule.steps_per_epoch)
        self.cadences = Cadences.of(self.recipe, length)
        self.step_logger = StepLogger(self.session, listener, length, self.recipe.tracking.log_every)
        self.listener = listener
        self.lags = self.session.device.type == "cuda"  # behind the host that feeds it
        telemetry, pictures = self.step_logger.telemetry, output_dirs.predictions / "pictures"
        count = self.recipe.evaluation.samples
        self.samples = Samples(task, artifacts, engine, listener, telemetry, pictures=pictures, count=count)
        self.worst_pictures = WorstPictures(artifacts, pictures / "examples", telemetry)
        self.saver = Saver(
            engine,
            output_dirs.checkpoints,
            training=training_values(self.recipe),
            keep=self.recipe.checkpoint.keep,
            published=lambda saved, best: listener.checkpoint(saved.path, step=saved.step, best=best),
        )
        self.finite_check = FiniteCheck(engine, self.saver)
        self.workers = choose_workers(
            self.recipe.data.workers,
            decodes=task.card.decodes,
            device=self.session.device.type,
            cores=threads_each(self.session.local_world_size),
        )
        self.rank_speed = RankSpeedEstimator(
            self.recipe.parallel.rank_speed,
            self.session,
            lookahead=fetched_ahead(self.workers) + ASSIGNED_AHEAD,
            passes=engine.passes,
            shards_weights=engine.shards_weights,
        )
        self.progress = Progress(*choosing_metric(plan, artifacts))
        self.source: StepSource = ScheduledSteps(
            self.schedule,
            self.planner,
            self.rank_speed,
            replica=self.session.replica,
            total_steps=self.total_steps,
        )

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
        if self.session.is_main:
            self.listener.started(
                start_step=self.progress.step,
                total_steps=self.total_steps,
                steps_per_epoch=self.schedule.steps_per_epoch,
                facts=facts,
            )
        self.engine.model.train()  # what is loaded pretrained comes in evaluation mode
        if self.progress.step == 0:
            self.samples.show(self.datasets, "before", 0)
            if self.recipe.evaluation.at_start and "validation" in self.datasets:
                self.measure("validation")  # no checkpoint has these weights, so they are never the best ones
        if self.progress.unevaluated:
            if self.session.is_main:
                self.listener.message(f"evaluating step {self.progress.step} first: the run was stopped before that")
            self._evaluate_and_save()
        for result in self.steps():
            due = self.cadences.due(self.progress.step)
            self.progress.unevaluated = due.evaluate and "validation" in self.datasets
            if result.stop:
                self._save_for_stop()
            self._evaluate_and_save()
        return self._finish()

    def _save_for_stop(self) -> None:
        """Save at once: an evaluation may take longer than the process is given. A resumed run evaluates first.

        Raises: Stopped, unless this was the last step: the rest of the run follows.
        """
        self.save(hurry=True)
        if self.progress.step < self.total_steps:
            self.saver.finish()
            later = "; it is evaluated when the run resumes" if self.progress.unevaluated else ""
            done = f"stopped after step {self.progress.step} of {self.total_steps}"
            raise Stopped(f"{done}; its checkpoint is saved{later}")

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
            self.progress.unevaluated &= "validation" in self.datasets
            if best is None:
                self.progress.forget_best()

    def steps(self) -> Iterator[StepResult]:
        """Train step after step, from `progress.step` to the end: each step's result, once it is done. All ranks call it.

        While one step is computed, the next one's batches are fetched.
        """
        batches = iterate_batches(
            self.datasets["train"],
            partial(self.task.collate, self.artifacts),
            self.source.steps(self.progress.step),
            workers=self.workers,
            pin_memory=self.session.device.type == "cuda",
            tell=self.listener.message if self.session.is_main else None,
        )
        prefetcher = Prefetcher(batches, self.session.device)
        prefetcher.fetch()
        early = self.recipe.training.early_stopping
        while self.progress.step < self.total_steps and not self.progress.exhausted(early):
            step, own = prefetcher.take()
            yield self._step(step, own, prefetcher)

    def _step(self, step: RankStep, batches: list[Batch], prefetcher: Prefetcher[Any]) -> StepResult:
        """One optimizer step; meanwhile the next one is fetched."""
        progress, timing, number = self.progress, self.step_logger.timing, self.progress.step + 1
        due = self.cadences.due(number)
        rate = learning_rate(step.index, self.total_steps, self.recipe.training)
        self.engine.set_learning_rate(rate)
        seed_step(self.recipe.seed, step.index, self.session.replica)
        started = timing.start(number, traced=self.rank_speed.measuring)
        result = train_step(
            self.task,
            self.artifacts,
            self.engine,
            batches,
            dummies=step.dummies,
            stop=self.stop.requested,
            busy=self.saver.busy,
            meanwhile=prefetcher.fetch,
        )
        if self.saver.under_way and not result.busy:
            self.saver.advance()
        self.finite_check.note(result, number, now=any(due) or result.stop or not self.lags)
        data = prefetcher.waited() if due.log or not self.lags else 0.0  # reading a GPU's events waits for them
        seconds = timing.end(started, data=data, idle=result.waiting_seconds)
        progress.count_step(result.units, seconds)
        figures = {"learning_rate": rate, "cost_imbalance": step.imbalance}
        self.step_logger.step(number, result, figures, seconds=seconds, logged=due.log)
        if report := self.rank_speed.note(step.index, step.cost, result, timing.own_seconds):
            self.listener.message(report)
        return result

    def _evaluate(self) -> bool:
        """Evaluate the validation data; whether it is the best so far."""
        result = self.measure("validation")
        early = self.recipe.training.early_stopping
        return self.progress.judge(result.scalars, early.min_delta if early else 0.0)

    def measure(self, split: str) -> Evaluation:
        """Evaluate one split and report it. All ranks call it."""
        file = f"{split}-step-{self.progress.step:08d}.jsonl"
        result = self.evaluator.evaluate(
            split,
            self.datasets[split],
            out=self.output_dirs.predictions / file,
            speeds=self.rank_speed.at(self.progress.step),
        )
        if self.session.is_main:
            self.step_logger.row(self.progress.step, split, result.scalars)
            prefix = "" if split == "validation" else f"{split}_"
            for name, table in result.tables.items():
                if name == WORST_EXAMPLES and self.task.card.decodes:
                    table = self.worst_pictures.add(split, self.datasets[split], table)
                columns, rows = table
                self.listener.table(prefix + name, step=self.progress.step, columns=columns, rows=rows)
        return result

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
        self.samples.show(self.datasets, "after", self.progress.step)
        return self.progress.outcome(best.step if best is not None else self.progress.step)
