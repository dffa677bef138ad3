"""One rank of a training: set up, train, export, report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import console as terminal

from finetune.app.export import write_model
from finetune.app.launcher_config import compare_with_launcher
from finetune.app.opening import open_recipe
from finetune.app.report import report
from finetune.app.setup import Workshop, open_session, plan_here, quieten, set_up
from finetune.app.train import choose_run, tell
from finetune.distributed.failure import failures_told
from finetune.distributed.launch import SUPERVISED
from finetune.distributed.place import here
from finetune.distributed.session import Session
from finetune.errors import Stopped, UserError
from finetune.models.load import load_config
from finetune.planning.plan import Plan
from finetune.planning.shape import cost_model
from finetune.recipe.digest import training_digest
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.recipe import Recipe
from finetune.tracking.console import Console
from finetune.tracking.journal import Journal
from finetune.tracking.listeners import Listeners
from finetune.tracking.run import Run
from finetune.tracking.wandb_mirror import WandbMirror
from finetune.training.checkpoint import Checkpoint, named_checkpoint, newest_checkpoint, open_checkpoint
from finetune.training.listener import Listener
from finetune.training.loop import Loop, Outcome, Places
from finetune.training.stop import StopRequest


def work(recipe_file: str, *, sets: list[str], run_dir: Path | None, resume: str) -> None:
    """This process as one of N, its failures told by the caller where `finetune train` supervises."""
    stop = StopRequest().listen()
    place = here()
    rank = place.rank if place else 0
    supervised = os.environ.get(SUPERVISED)
    loaded = open_recipe(recipe_file, sets)
    plan = plan_here(loaded.recipe, place.world_size if place else 1)
    if supervised:
        quieten(rank, Path(supervised))
    elif rank == 0:
        for line in compare_with_launcher(os.environ, plan):
            tell(line)
    session = open_session(plan)
    run = _agree_on_run(session, loaded, run_dir, resume)
    if run is not None and supervised:
        _train(session, loaded, plan, run, resume, stop)
    elif run is not None:
        quieten(rank, run.logs)
        with failures_told(rank, run.logs, supervised=False):
            _train(session, loaded, plan, run, resume, stop)
    session.close()


def _agree_on_run(session: Session, loaded: LoadedRecipe, run_dir: Path | None, resume: str) -> Run | None:
    """Rank 0 chooses the run folder, if the supervising process has not; all ranks learn it."""
    if SUPERVISED in os.environ and run_dir is not None:
        return Run.open(run_dir)
    path: str | None = None
    with session.main_first():
        if session.is_main:
            run = choose_run(loaded, run_dir, resume)
            path = str(run.path) if run else None
    path = session.broadcast(path)
    return Run.open(Path(path)) if path else None


def _train(session: Session, loaded: LoadedRecipe, plan: Plan, run: Run, resume: str, stop: StopRequest) -> None:
    recipe = loaded.recipe
    listener = make_listeners(run, recipe) if session.is_main else Silent()
    summary: dict[str, Any] = {}
    status = "failed"
    try:
        if session.is_main:
            run.plan_file.write_text(json.dumps(plan.to_dict(), indent=1), encoding="utf-8")
        shop = set_up(session, recipe, plan, listener.message)
        loop = make_loop(shop, run, listener, stop)
        start, best = _find_checkpoints(session, run, recipe, resume, listener)
        outcome = loop.run(start, best, facts=describe(shop))
        summary = _finish(loop, shop, run, outcome)
        status = "done"
    except (Stopped, KeyboardInterrupt):
        status = "stopped"
        raise
    finally:
        if session.is_main:
            listener.finished(status=status, summary=summary)
    if session.is_main:
        report(run.path)


def make_loop(shop: Workshop, run: Run, listener: Listener, stop: StopRequest) -> Loop:
    """The loop over this workshop, writing into the run folder."""
    recipe = shop.kit.recipe
    return Loop(
        shop.task,
        shop.kit,
        shop.engine,
        cost=cost_model(load_config(recipe.model)),
        micro_batch=shop.plan.batch.micro_batch,
        recipe_digest=training_digest(recipe),
        places=Places(run.checkpoints, run.predictions),
        listener=listener,
        stop=stop,
    )


def _find_checkpoints(
    session: Session, run: Run, recipe: Recipe, resume: str, listener: Listener
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Where to go on, and the best one so far. Rank 0 checks digests; all ranks learn the paths."""
    paths: tuple[Path | None, Path | None] = (None, None)
    with session.main_first():
        if session.is_main and resume == "auto":
            newest = newest_checkpoint(run.checkpoints, listener.message)
            paths = (newest.path if newest else None, named_checkpoint(run.checkpoints, "best"))
        elif session.is_main and resume != "never":
            given = open_checkpoint(Path(resume).resolve())
            if given.manifest.recipe_digest != training_digest(recipe):
                raise UserError(
                    "the checkpoint is of another recipe (its data, model or training differ)",
                    where=resume,
                    remedy="train this recipe from model.source instead, or resume with the recipe it came from",
                )
            paths = (given.path, None)
    start, best = session.broadcast(paths)
    if start is not None and session.is_main:
        listener.message(f"going on from {start.name}")
    return (open_checkpoint(start) if start else None, open_checkpoint(best) if best else None)


def _finish(loop: Loop, shop: Workshop, run: Run, outcome: Outcome) -> dict[str, Any]:
    """The test split on the best weights, the model for `from_pretrained`, and the figures for people."""
    test = loop.measure("test").scalars if "test" in shop.kit.examples else {}
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
    write_model(shop, run, run.model, figures={**outcome.last, **{f"test_{k}": v for k, v in test.items()}})
    return summary


def describe(shop: Workshop) -> dict[str, Any]:
    """Facts for people: what is trained, on what, by how many."""
    parameters = [getattr(p, "ds_numel", p.numel()) for p in shop.engine.module.parameters()]
    trainable = [getattr(p, "ds_numel", p.numel()) for p in shop.engine.module.parameters() if p.requires_grad]
    recipe = shop.kit.recipe
    return {
        "model": recipe.model.source,
        "task": recipe.task,
        "parameters": sum(parameters),
        "trainable_parameters": sum(trainable),
        "ranks": shop.session.world_size,
        "device": shop.plan.device,
        "engine": shop.plan.engine_name,
        "deepspeed": recipe.parallel.deepspeed,
        "precision": shop.plan.precision,
        "unit": shop.task.card.unit,
        "global_batch": recipe.training.global_batch,
        "micro_batch": shop.plan.batch.micro_batch,
        "accumulation": shop.plan.batch.accumulation,
        "examples": {split: len(examples) for split, examples in shop.kit.examples.items()},
        **{key: value for key, value in shop.kit.facts.items() if isinstance(value, (str, int, float, bool))},
    }


def make_listeners(run: Run, recipe: Recipe) -> Listeners:
    """Who hears of the training on rank 0: the journal first, because it is the truth."""
    console = Console(terminal.Console(highlight=False), log_every=recipe.tracking.log_every)
    return Listeners([Journal(run), console, WandbMirror(run, recipe, console.message)])


class Silent:
    """The listener of all ranks but 0."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None
