"""One rank of a training: set up, train, export, report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich import console as terminal

from finetune.app.adapter_names import check_adapter_names
from finetune.app.kept_files import read_plan, record_kept_files
from finetune.app.machine import plan_here
from finetune.app.model_folder import write_model
from finetune.app.opening import open_recipe
from finetune.app.runs import choose_run, kept_run, leave_folders, result_lines, resume_command
from finetune.app.workers.capacity import settle_capacity
from finetune.app.workers.context import TrainingContext, make_loop, open_session, set_up
from finetune.app.workers.describe import describe, forecast_bytes
from finetune.app.workers.launcher_config import compare_ranks, compare_with_launcher
from finetune.app.workers.libraries import import_libraries
from finetune.app.workers.logs import redirect_output
from finetune.app.workers.preparing import PreparedData, ready
from finetune.app.workers.resuming import check_same_plan, find_start
from finetune.distributed.env import from_environ
from finetune.distributed.failure import clear_failures, first_failure, report_failures
from finetune.distributed.launch import SUPERVISED
from finetune.distributed.session import Session
from finetune.errors import FinetuneError, Stopped
from finetune.events import Listener, SilentListener
from finetune.models.float8 import check_float8
from finetune.models.module_names import names_without_weights
from finetune.planning.plan import Plan
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.recipe import Recipe
from finetune.recipe.trackers import TRACKERS
from finetune.tasks.artifacts import MODEL
from finetune.terminal import phase, phases_told, print_line
from finetune.tracking.atomic_files import publish_json
from finetune.tracking.console import Console
from finetune.tracking.journal import Journal
from finetune.tracking.listeners import Listeners
from finetune.tracking.retention import apply_retention
from finetune.tracking.run import Run
from finetune.tracking.wandb_mirror import WandbMirror
from finetune.training.loop import Loop, OutputDirs
from finetune.training.progress import Outcome
from finetune.training.stop import StopRequest
from finetune.training.telemetry import Telemetry


def load_libraries(recipe: str, sets: list[str]) -> None:
    """What a rank imports in any case, before it does anything else."""
    import_libraries(open_recipe(recipe, sets).recipe)


def work(
    *, recipe: str, sets: list[str], run_dir: Path | None, resume: str, data_changed: bool = False, **supervision: Any
) -> None:
    """This process as one of N. supervision: options for the supervising process alone (processes, restarts)."""
    env = from_environ()
    rank = env.rank if env else 0
    supervised = os.environ.get(SUPERVISED)
    if supervised:
        redirect_output(rank, Path(supervised))
    loaded = open_recipe(recipe, sets)
    for warning in () if supervised or rank else loaded.warnings:
        print_line(f"note: {warning}")
    kept = kept_run(loaded.recipe, run_dir, resume)  # on all ranks, before anything is written
    stored = None if kept is None else read_plan(Run(kept))
    tell = print_line if rank == 0 else lambda line: None
    with phase("planning", tell):
        plan = plan_here(loaded.recipe, env.world_size if env else 1, stored)
    if plan.training.float8 != "none":
        check_float8(plan.precision)
    if rank == 0:
        for line in [*compare_with_launcher(os.environ, plan), *([] if supervised else compare_ranks(plan))]:
            print_line(line)
    with phase("reading the data", tell):
        data = ready(
            loaded.recipe, kept, data_changed=data_changed
        )  # a signal ends it at once: there is nothing to save
    if not supervised:
        check_adapter_names(loaded.recipe, names_without_weights)
    stop = StopRequest().listen()
    with phase("connecting the ranks", tell):
        session = open_session(plan)
        check_same_plan(session, plan)
    try:
        run = _agree_on_run(session, loaded, run_dir, resume)
        if run is not None and supervised:
            _train(session, loaded.recipe, plan, data, run, resume, stop)
        elif run is not None:
            redirect_output(rank, run.logs)
            with report_failures(rank, run.logs, supervised=False), _say_how_to_resume(run):
                _train(session, loaded.recipe, plan, data, run, resume, stop)
    finally:
        leave_folders()
    session.close()


@contextmanager
def _say_how_to_resume(run: Run) -> Iterator[None]:
    """Under another launcher, whose own command this process does not know."""
    try:
        yield
    except Stopped as error:
        words = resume_command(run).removeprefix("finetune ")
        raise Stopped(error.what, remedy=f"Resume with the same launcher: ... -m finetune {words}") from None


def _agree_on_run(session: Session, loaded: LoadedRecipe, run_dir: Path | None, resume: str) -> Run | None:
    """Rank 0 chooses the run folder, if the supervising process has not; all ranks learn it."""
    if SUPERVISED in os.environ and run_dir is not None:
        return Run.open(run_dir, own=True)
    path: str | None = None
    with session.main_first():
        if session.is_main:
            run = choose_run(loaded, run_dir, resume)
            path = str(run.path) if run else None
            if run is not None:
                clear_failures(run.logs)
    path = session.broadcast(path)
    return Run.open(Path(path), own=True) if path else None


def _train(
    session: Session, recipe: Recipe, plan: Plan, data: PreparedData, run: Run, resume: str, stop: StopRequest
) -> None:
    listener = make_listeners(run, recipe) if session.is_main else SilentListener()
    with _report_early_end(session, listener, run):
        built = set_up(session, plan, data, listener.message, asked_to_stop=lambda: stop.requested)
        context = settle_capacity(built, listener.message)
        if session.is_main:
            _write_contract(context, data, run)
        start = find_start(session, run, recipe, resume, data.data, listener)
        if start.data_version > 1:
            listener.add_to_rows(data_version=float(start.data_version))
        loop = make_loop(context, OutputDirs(run.checkpoints, run.predictions), listener, stop)
        facts = {**describe(context), "model": recipe.model.source}
        listener.message(f"started in {phases_told()}")
        outcome = loop.run(start.checkpoint, start.best, facts=facts)
        summary = _finish(loop, context, run, recipe, outcome)
    if session.is_main:
        listener.finished(status="done", summary=summary)
        if line := apply_retention(run, recipe.checkpoint.keep_after_training):
            print_line(line)
        Telemetry(listener.message).run("writing report.html", lambda: _report(run), None)
        for line in [] if SUPERVISED in os.environ else result_lines(run):
            print_line(line)


def _report(run: Run) -> None:
    from finetune.tracking.report import write_report  # matplotlib: nearly a second, which the ranks need not wait for

    write_report(run.path)


def _write_contract(context: TrainingContext, data: PreparedData, run: Run) -> None:
    """plan.json, and artifacts/: what other verbs, and other machines, know the run by. Rank 0 only."""
    publish_json(run.plan_file, {**context.plan.to_dict(), "state_bytes": forecast_bytes(context).to_dict()})
    data.save_artifacts(run.artifacts)
    module: Any = context.engine.module
    if all(weight.requires_grad for weight in module.parameters()):  # so that checkpoints hold the whole model
        module.config.save_pretrained(run.artifacts / MODEL)
    record_kept_files(run)


@contextmanager
def _report_early_end(session: Session, listener: Listener, run: Run) -> Iterator[None]:
    """Report a training that is stopped or fails inside. A disk error here must not mask the original exception."""
    try:
        yield
    except BaseException as error:
        if session.is_main:
            status, summary = _describe_end(error, run)
            with suppress(FinetuneError):
                listener.finished(status=status, summary=summary)
        raise


def _describe_end(error: BaseException, run: Run) -> tuple[str, dict[str, str]]:
    """Status and summary for `Listener.finished`."""
    if isinstance(error, Stopped | KeyboardInterrupt):
        return "stopped", {}
    failure = first_failure(error, Path(os.environ.get(SUPERVISED) or run.logs))
    cause = {"failure": failure.what, "failure_kind": failure.kind}
    return "failed", {key: value for key, value in cause.items() if value}


def _finish(loop: Loop, context: TrainingContext, run: Run, recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """The test split on the best weights, the model for `from_pretrained`, and the figures for people."""
    test = loop.measure("test").scalars if "test" in context.datasets else {}
    summary = {
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 3),
        **{f"best_{key}": value for key, value in outcome.best.items()},
        "best_step": outcome.best_step,
        "best_metric": outcome.metric,
        "best_value": outcome.best_value,
        **{f"last_{key}": value for key, value in outcome.last.items()},
        **{f"test_{key}": value for key, value in test.items()},
        "model": str(run.model),
    }
    validated = outcome.best or outcome.last  # where none was the best, the weights are those of the last evaluation
    figures = {**validated, **{f"test_{key}": value for key, value in test.items()}}
    write_model(
        context.engine,
        context.artifacts,
        run,
        recipe,
        run.model,
        figures=figures,
        step=outcome.best_step,
    )
    return summary


def make_listeners(run: Run, recipe: Recipe) -> Listeners:
    """Who hears of the training on rank 0: the journal first, because it is the truth."""
    console = Console(terminal.Console(highlight=False), log_every=recipe.tracking.log_every)
    also = dict.fromkeys(recipe.tracking.also)
    others = [TRACKERS[name].listener_class(run, recipe, console.message) for name in also]
    return Listeners([Journal(run), console, WandbMirror(run, recipe, console.message), *others])
