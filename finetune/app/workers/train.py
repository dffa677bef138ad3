"""One rank of a training: set up, train, export, report."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich import console as terminal

from finetune.app.export import write_model
from finetune.app.opening import open_recipe
from finetune.app.report import report
from finetune.app.train import ROOT, choose_run, notify
from finetune.app.workers.context import TrainingContext, open_session, plan_here, quieten, set_up
from finetune.app.workers.launcher_config import compare_with_launcher
from finetune.distributed.env import from_environ
from finetune.distributed.failure import clear_failures, report_failures
from finetune.distributed.launch import SUPERVISED
from finetune.distributed.session import Session
from finetune.distributed.tensor_parallel import whole_shape
from finetune.errors import FinetuneError, Stopped, UserError
from finetune.events import Listener
from finetune.models.load import load_config
from finetune.models.quantized import stored_bytes
from finetune.planning.deepspeed import offloads
from finetune.planning.memory import StateBytes, state_bytes
from finetune.planning.plan import Plan
from finetune.planning.shape import cost_model
from finetune.planning.stored import StoredPlan
from finetune.recipe.identity import list_differences, training_differences
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.recipe import Recipe
from finetune.tracking.atomic_files import publish_json
from finetune.tracking.console import Console
from finetune.tracking.journal import Journal
from finetune.tracking.listeners import Listeners
from finetune.tracking.run import Run
from finetune.tracking.wandb_mirror import WandbMirror
from finetune.training.checkpoint_reader import Checkpoint, check_together, checkpoint_name, newest_checkpoint
from finetune.training.checkpoint_writer import abandon_newer, name_checkpoint
from finetune.training.loop import Loop, Outcome, OutputDirs
from finetune.training.stop import StopRequest


def work(recipe_file: str, *, sets: list[str], run_dir: Path | None, resume: str) -> None:
    """This process as one of N, its failures told by the caller where `finetune train` supervises."""
    stop = StopRequest().listen()
    env = from_environ()
    rank = env.rank if env else 0
    supervised = os.environ.get(SUPERVISED)
    loaded = open_recipe(recipe_file, sets)
    stored = find_stored_plan(loaded.recipe, run_dir, resume)  # on all ranks, before anything is written
    plan = plan_here(loaded.recipe, env.world_size if env else 1, stored)
    if supervised:
        quieten(rank, Path(supervised))
    elif rank == 0:
        for line in compare_with_launcher(os.environ, plan):
            notify(line)
    session = open_session(plan)
    _check_same_plan(session, plan)
    run = _agree_on_run(session, loaded, run_dir, resume)
    if run is not None and supervised:
        _train(session, loaded, plan, run, resume, stop)
    elif run is not None:
        quieten(rank, run.logs)
        with report_failures(rank, run.logs, supervised=False):
            _train(session, loaded, plan, run, resume, stop)
    session.close()


def find_stored_plan(recipe: Recipe, run_dir: Path | None, resume: str) -> StoredPlan | None:
    """The plan of the run that is resumed: of the checkpoint that is named, else of the run folder. Reads only."""
    if resume == "never":
        return None
    named = None if resume == "auto" else StoredPlan.read(Run(Path(resume).resolve().parent.parent).plan_file)
    if named is not None:
        return named
    run = Run(run_dir) if run_dir is not None else Run.newest_unfinished(recipe, ROOT)
    return None if run is None else StoredPlan.read(run.plan_file)


def _check_same_plan(session: Session, plan: Plan) -> None:
    """All ranks call it. Raises: UserError if they do not see the same run folder."""
    plans = session.all_gather(plan.training)
    if any(other != plans[0] for other in plans):
        raise UserError(
            "the ranks found different plans for the same run",
            remedy="All machines need the same run folder: put runs/ on storage that they share.",
        )


def _agree_on_run(session: Session, loaded: LoadedRecipe, run_dir: Path | None, resume: str) -> Run | None:
    """Rank 0 chooses the run folder, if the supervising process has not; all ranks learn it."""
    if SUPERVISED in os.environ and run_dir is not None:
        return Run.open(run_dir)
    path: str | None = None
    with session.main_first():
        if session.is_main:
            run = choose_run(loaded, run_dir, resume)
            path = str(run.path) if run else None
            if run is not None:
                clear_failures(run.logs)
    path = session.broadcast(path)
    return Run.open(Path(path)) if path else None


def _train(session: Session, loaded: LoadedRecipe, plan: Plan, run: Run, resume: str, stop: StopRequest) -> None:
    recipe = loaded.recipe
    listener = make_listeners(run, recipe) if session.is_main else SilentListener()
    try:
        context = set_up(session, recipe, plan, listener.message)
        if session.is_main:
            publish_json(run.plan_file, {**plan.to_dict(), "state_bytes": forecast_bytes(context).to_dict()})
        loop = make_loop(context, run, listener, stop)
        start, best = _find_checkpoints(session, run, recipe, resume, listener)
        outcome = loop.run(start, best, facts=describe(context))
        summary = _finish(loop, context, run, outcome)
    except (Stopped, KeyboardInterrupt):
        _end(session, listener, "stopped")
        raise
    except BaseException:
        _end(session, listener, "failed")
        raise
    if session.is_main:
        listener.finished(status="done", summary=summary)
        report(run.path)


def _end(session: Session, listener: Listener, status: str) -> None:
    """Tell that it ended before its time. What the disk says to that must not hide why."""
    if session.is_main:
        with suppress(FinetuneError):
            listener.finished(status=status, summary={})


def make_loop(context: TrainingContext, run: Run, listener: Listener, stop: StopRequest) -> Loop:
    """The loop over this workshop, writing into the run folder."""
    recipe = context.kit.recipe
    return Loop(
        context.task,
        context.kit,
        context.engine,
        cost=cost_model(load_config(recipe.model)),
        micro_batch=context.plan.batch.micro_batch,
        output_dirs=OutputDirs(run.checkpoints, run.predictions),
        listener=listener,
        stop=stop,
    )


def _find_checkpoints(
    session: Session, run: Run, recipe: Recipe, resume: str, listener: Listener
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Where to go on, and the best one so far; digests checked, each rank its share. All ranks call it."""
    folder = run.checkpoints
    if resume == "never":
        return None, None
    if resume == "auto":
        start = newest_checkpoint(session, folder, listener.message)
        if start is None:
            return None, None
    else:
        start = _given_checkpoint(session, recipe, Path(resume).resolve(), listener)
    best = _find_best(session, start, listener)
    if session.is_main:
        listener.message(f"going on from {start.path.name}")
        abandon_newer(folder, start.step)
        for label, named in (("latest", start), ("best", best)):  # a kill may have come between renaming and naming
            if named is not None and named.path.parent.resolve() == folder.resolve():
                name_checkpoint(folder, label, named.path.name)
    return start, best


def _given_checkpoint(session: Session, recipe: Recipe, path: Path, listener: Listener) -> Checkpoint:
    """The one that `--resume` names. Raises: UserError if it is damaged or of another recipe."""
    found, problem = check_together(session, path)
    if found is None:
        raise UserError(problem, where="--resume", remedy="Give another checkpoint, or --resume auto.")
    run = Run(path.parent.parent)
    if run.recipe_file.is_file():
        differences = run.differences(recipe)
    elif found.manifest.training:
        differences = training_differences(found.manifest.training, recipe)
    else:
        differences = []
        listener.message("note: the checkpoint lies outside its run and does not say its recipe; it was not compared")
    if differences:
        raise UserError(
            f"the checkpoint is of another recipe:{list_differences(differences)}",
            where=str(path),
            remedy="Train this recipe from model.source instead, or resume with the recipe it came from.",
        )
    return found


def _find_best(session: Session, start: Checkpoint, listener: Listener) -> Checkpoint | None:
    """The best one that `start` knows of, if it is still whole."""
    loop = start.manifest.loop
    if loop.get("best_value") is None or loop["best_step"] == start.step:
        return start if loop.get("best_value") is not None else None
    path = start.path.parent / checkpoint_name(loop["best_step"])
    best, problem = check_together(session, path)
    if best is None:
        listener.message(f"the best checkpoint so far is lost; the best of those to come is taken ({problem})")
    return best


def _finish(loop: Loop, context: TrainingContext, run: Run, outcome: Outcome) -> dict[str, Any]:
    """The test split on the best weights, the model for `from_pretrained`, and the figures for people."""
    test = loop.measure("test").scalars if "test" in context.kit.examples else {}
    summary = {
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 3),
        "best_step": outcome.best_step,
        "best_metric": outcome.metric,
        "best_value": outcome.best_value,
        **{f"last_{key}": value for key, value in outcome.last.items()},
        **{f"test_{key}": value for key, value in test.items()},
        "model": str(run.model),
    }
    write_model(context, run, run.model, figures={**outcome.last, **{f"test_{k}": v for k, v in test.items()}})
    return summary


def forecast_bytes(context: TrainingContext) -> StateBytes:
    """Bytes of weights, gradients and optimiser state that a rank holds, activations apart."""
    from_environ = [p for p in context.engine.module.parameters() if not p.is_meta]  # without a pipeline's other stages
    held = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in from_environ]
    config = context.plan.deepspeed
    quantised = context.kit.recipe.model.quantization != "none"
    return state_bytes(
        sum(size for size, _ in held),
        sum(size for size, trained in held if trained),
        ranks=context.session.replicas,
        stage=context.plan.stage,
        precision=context.plan.precision,
        optimizer=context.plan.optimizer,
        engine=config is not None,
        offload_optimizer=offloads(config),
        offload_param=offloads(config, "param"),
        frozen_bytes=stored_bytes(context.engine.module) if quantised else None,
    )


def count_parameters(context: TrainingContext) -> tuple[int, int]:
    """All, and those that are trained, of the whole model."""
    sizes = [(math.prod(whole_shape(p)), p.requires_grad) for p in context.engine.module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def describe(context: TrainingContext) -> dict[str, Any]:
    """Facts for people: what is trained, on what, by how many."""
    parameters, trainable = count_parameters(context)
    recipe = context.kit.recipe
    return {
        "model": recipe.model.source,
        "task": recipe.task,
        "parameters": parameters,
        "trainable_parameters": trainable,
        "ranks": context.session.world_size,
        "device": context.plan.device,
        "engine": context.plan.engine_name,
        "deepspeed": recipe.parallel.deepspeed
        + (f", tensor {tensor}" if (tensor := recipe.parallel.tensor) > 1 else ""),
        "precision": context.plan.precision,
        "unit": context.task.card.unit,
        "global_batch": recipe.training.global_batch,
        "micro_batch": context.plan.batch.micro_batch,
        "accumulation": context.plan.batch.accumulation,
        "examples": {split: len(examples) for split, examples in context.kit.examples.items()},
        **{key: value for key, value in context.kit.facts.items() if isinstance(value, (str, int, float, bool))},
    }


def make_listeners(run: Run, recipe: Recipe) -> Listeners:
    """Who hears of the training on rank 0: the journal first, because it is the truth."""
    console = Console(terminal.Console(highlight=False), log_every=recipe.tracking.log_every)
    return Listeners([Journal(run), console, WandbMirror(run, recipe, console.message)])


class SilentListener:
    """The listener of all ranks but 0."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None
