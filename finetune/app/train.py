"""`finetune train`: from a recipe to a run. This process supervises; inside a launcher it is one of the workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from finetune.app.opening import open_recipe
from finetune.data.sources.preflight import check_data
from finetune.distributed.env import from_environ
from finetune.distributed.failure import report_failures
from finetune.distributed.launch import SUPERVISED, Launch, die_with_parent, run_workers
from finetune.errors import Fault, RecipeFaults, TrainingFailed, UserError
from finetune.planning.tensor import KEY, check_model
from finetune.recipe.identity import list_differences
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.machine import count_gpus
from finetune.tasks import CARDS
from finetune.tracking.run import Run

ROOT = Path("runs")


def train(
    recipe: str, *, sets: list[str], processes: int | None, run_dir: Path | None, resume: str, restarts: int
) -> None:
    """Train a recipe to the end, from its last checkpoint if there is one.

    Raises: UserError before anything starts; TrainingFailed, Stopped as the first failing rank said.
    """
    if is_worker():
        with worker():
            from finetune.app.workers.train import work

            work(recipe, sets=sets, run_dir=run_dir, resume=resume)
        return
    if any(name.startswith("ACCELERATE_") for name in os.environ):
        notify("note: accelerate started one process, without ranks; the ranks are started from here")
        notify("      (on a CPU it starts several only with --use_deepspeed, or ds_configs/accelerate/cpu.yaml)")
    loaded = open_recipe(recipe, sets)
    for warning in loaded.warnings:
        notify(f"note: {warning}")
    check(loaded)
    launch = plan_launch(loaded, [], processes)  # what it refuses leaves no folder of a run
    run = choose_run(loaded, run_dir, resume)
    if run is None:
        return
    resume = "auto" if resume == "never" else resume  # the run is a new one already
    arguments = ["train", str(run.recipe_file), "--run-dir", str(run.path), "--resume", resume]
    supervise(run, replace(launch, arguments=arguments), restarts)
    summary = run.read().get("summary", {})
    if summary.get("best_value") is not None:
        notify(f"best    {summary['best_metric']} {summary['best_value']:.4f} at step {summary['best_step']}")
    notify(f"model   {run.model}")
    notify(f"report  {run.report_file}")


def is_worker() -> bool:
    """Whether a launcher started this process, ours or anyone's."""
    return SUPERVISED in os.environ or from_environ() is not None


@contextmanager
def worker() -> Iterator[None]:
    """Around everything that a supervised worker does, so that no failure of it goes untold."""
    logs = os.environ.get(SUPERVISED)
    if not logs:
        yield
        return
    die_with_parent()
    env = from_environ()
    with report_failures(env.rank if env else 0, Path(logs), supervised=True):
        yield


def check(loaded: LoadedRecipe) -> None:
    """What a quick look at the data tells, and at the model where it is to be sliced.

    Raises: RecipeFaults with the lines of the recipe; UserError for a model that cannot be sliced so.
    """
    recipe = loaded.recipe
    faults = check_data(recipe, CARDS[recipe.task])
    if faults:
        raise RecipeFaults([_placed(fault, loaded) for fault in faults])
    if recipe.parallel.tensor > 1:
        from finetune.models.config import load_config

        check_model(load_config(recipe.model), recipe.parallel.tensor, where=loaded.origins.get(KEY, KEY))


def _placed(fault: Fault, loaded: LoadedRecipe) -> Fault:
    """The fault with the line of its key, or of the nearest key above it."""
    key = fault.key
    while key and key not in loaded.origins:
        key = key.rpartition(".")[0]
    where = fault.where or loaded.origins.get(key, "recipe")
    return Fault(where, fault.key, fault.message, fault.value, fault.allowed, fault.nearest)


def choose_run(loaded: LoadedRecipe, run_dir: Path | None, resume: str) -> Run | None:
    """The run to go on with, or a new one; None if `run_dir` holds this recipe's run, done already."""
    recipe = loaded.recipe
    if run_dir is None:
        found = Run.newest_unfinished(recipe, ROOT) if resume == "auto" else None
        if found is None:
            return Run.create(recipe, ROOT)
        found.write_recipe(recipe)
        return found
    if not (run_dir / "run.json").is_file():
        return Run.create(recipe, ROOT, path=run_dir)
    run = Run.open(run_dir)
    if resume == "never":
        raise UserError(
            "--resume never would start anew in the folder of another run",
            where=str(run_dir),
            remedy="give another --run-dir, or remove this folder",
        )
    if differences := run.differences(recipe):
        raise UserError(
            f"the folder holds a run of another recipe:{list_differences(differences)}",
            where=str(run_dir),
            remedy="Give another --run-dir to train this one.",
        )
    if run.trainer not in (None, os.getpid()):
        raise UserError(
            f"the run is being trained by process {run.trainer}",
            where=str(run_dir),
            remedy="wait for its end or end it (kill -TERM saves first), then start the same command again",
        )
    if run.status == "done":
        notify(f"nothing to do: {run.path} is done; its model is in {run.model}")
        return None
    run.write_recipe(recipe)
    return run


def plan_launch(loaded: LoadedRecipe, arguments: list[str], processes: int | None) -> Launch:
    """How many ranks, on what. The command line goes first, then the recipe, then the machine."""
    parallel = loaded.recipe.parallel
    gpus = count_gpus()
    split = parallel.split
    auto = max(split, gpus // split * split)
    count = int(processes or (parallel.processes if parallel.processes != "auto" else auto))
    asked = "--processes" if processes else loaded.origins.get("parallel.processes", "parallel.processes")
    if count % split:
        raise UserError(
            f"{count} processes are not a multiple of the {split} that hold one copy of the model",
            where=asked,
            remedy=f"start {split}, {2 * split}, ...; or set parallel.{'tensor' if parallel.tensor > 1 else 'pipeline'}: 1",
        )
    if gpus and count > gpus:
        raise UserError(
            f"{count} processes on {gpus} GPUs",
            where=asked,
            remedy=f"at most one process a GPU: --processes {gpus // split * split}; the numbers stay the same"
            if gpus >= split
            else f"the {split} ranks that hold a model together need a GPU each",
        )
    return Launch(arguments, count, deepspeed=parallel.deepspeed != "none", cpu=gpus == 0)


def supervise(run: Run, launch: Launch, restarts: int) -> None:
    """Run the workers; after a failure start again from the last checkpoint, as long as steps are gained.

    Raises: what the first failing rank said, when restarts are used up or no step was gained.
    """
    gained_from = -1
    while True:
        try:
            run_workers(launch, run.logs, notify)
            return
        except TrainingFailed as error:
            reached = _last_step(run)
            if restarts <= 0 or reached <= gained_from:
                raise
            restarts, gained_from = restarts - 1, reached
            if reached:  # from there, even if --resume named another one at first
                launch = replace(launch, arguments=[*launch.arguments[:-1], "auto"])
            notify(f"{error}\nstarting again from step {reached} ({restarts} restarts left)")


def _last_step(run: Run) -> int:
    """The step of the newest published checkpoint; 0 if there is none."""
    names = [path.name for path in run.checkpoints.glob("step-*") if path.is_dir() and path.suffix == ""]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def notify(text: str) -> None:
    """A line for the person who watches."""
    print(text, flush=True)
