"""`finetune sweep`: many trainings of one recipe, of which the better half goes on at each rung."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from finetune.app.launch_plan import plan_launch
from finetune.app.recipe_check import check_recipe
from finetune.app.runs import ROOT, leave_folders, take_folder
from finetune.app.sweeping.halving import rungs_of
from finetune.app.sweeping.options import SweepOptions
from finetune.app.sweeping.results import best_of, print_results
from finetune.app.sweeping.runner import Runner
from finetune.app.sweeping.slots import Slot, list_slots, ranks_of_trial
from finetune.app.sweeping.space import list_trials, parse_space
from finetune.app.sweeping.state import Definition, State, open_state
from finetune.app.sweeping.trials import Measure, check_trials, measure_of, name_trials
from finetune.app.sweeping.wandb_file import write_wandb_sweep
from finetune.app.worker import is_worker
from finetune.errors import TrainingFailed, UserError
from finetune.planning.best import best_mode
from finetune.recipe import shelf
from finetune.recipe.load import LoadedRecipe
from finetune.terminal import print_line
from finetune.tracking.atomic_files import check_folder
from finetune.units import format_number


def sweep(options: SweepOptions) -> None:
    """Train the trials of a space, or only write them as a W&B sweep.

    Raises: UserError and RecipeFaults before anything starts; Stopped on request; TrainingFailed if no trial finished.
    """
    if is_worker():
        raise UserError("a sweep starts its trials itself", remedy="Run it without accelerate launch or torchrun.")
    if options.sweep_dir is not None:
        check_folder(options.sweep_dir, "Give another --sweep-dir.")
    recipe, metric, draws = options.recipe, options.metric, options.draws
    space = parse_space(options.grid)
    points, notes = list_trials(space, draws, options.seed)
    sets = [*options.sets, *([f"evaluation.best={metric}"] if metric else [])]
    trials = name_trials(points)
    loaded = check_trials(recipe, sets, trials, metric)
    first = loaded[0]
    measure = Measure(first.recipe.evaluation.best, best_mode(first.recipe.evaluation, first.recipe.evaluation.best))
    if (file := options.wandb_sweep) is not None:
        write_wandb_sweep(file, recipe, sets, space, draws, measure)
        print_line(f"W&B     {file}: start it with wandb sweep {shlex.quote(str(file))}")
        return
    _check_data(loaded)
    slots, more = _plan(first, options.parallel, options.processes)
    described = {one.key: one.describe() for one in space}
    definition = Definition(first.recipe, described, draws, options.seed if draws is not None else 0)
    root = ROOT / f"{first.recipe.name}-sweeps"
    state, new = open_state(definition, trials, recipe, root, options.sweep_dir)
    take_folder(state.folder, "sweep")
    try:
        if options.retry_failed:
            state.failures.clear()
        for note in dict.fromkeys([*notes, *more, *first.warnings]):
            print_line(f"note: {note}")
        _run(state, first, slots, measure, sets, options.processes, halving=options.halving, new=new)
    finally:
        leave_folders()


def _check_data(loaded: Sequence[LoadedRecipe]) -> None:
    """Each different set of data once."""
    seen = set()
    for one in loaded:
        key = repr((one.recipe.data, one.recipe.model.source))
        if key not in seen:
            seen.add(key)
            check_recipe(one)


def _plan(first: LoadedRecipe, parallel: int | None, processes: int | None) -> tuple[list[Slot], list[str]]:
    ranks = ranks_of_trial(first.recipe.parallel, processes)
    plan_launch(first, ranks)  # refuses a number of ranks that does not fit
    return list_slots(ranks, parallel)


def _run(
    state: State,
    first: LoadedRecipe,
    slots: Sequence[Slot],
    measure: Measure,
    sets: Sequence[str],
    processes: int | None,
    *,
    halving: bool,
    new: bool,
) -> None:
    rungs = rungs_of(len(state.trials), halving=halving)
    state.publish(status="running", running=[], metric=measure.metric, mode=measure.mode)  # or refuses
    _announce(state, measure, rungs, new=new)
    runner = Runner(
        state,
        slots,
        measure,
        rungs,
        arguments=_arguments(state, first, sets, processes),
        recipe_file=Path(shelf.find_recipe(state.recipe)),
    )
    decision = runner.run()
    shown = measure_of([state.path(trial) for trial in state.trials], measure)
    best = best_of(runner.observations, decision)
    state.publish(
        status="done" if best is not None else "failed",
        running=[],
        metric=shown.metric,
        mode=shown.mode,
        best=state.trials[best].name if best is not None else None,
    )
    print_results(state, runner.observations, decision, shown, sets)
    if best is None:
        raise TrainingFailed(
            "no trial finished",
            where=str(state.folder),
            remedy="The reasons are above; logs/ has all that they printed.",
        )


def _announce(state: State, measure: Measure, rungs: Sequence[float], *, new: bool) -> None:
    verb = "starting" if new else "going on with"
    at = ", ".join(f"{fraction:.3g}" for fraction in rungs[:-1])
    how = f"the better half goes on at {at} of the schedule" if at else "all to the end"
    print_line(f"{verb} {format_number(len(state.trials), 'trial')} in {state.folder}: {how}")
    print_line(f"best is the {'highest' if measure.mode == 'max' else 'lowest'} validation {measure.metric}")


def _arguments(state: State, first: LoadedRecipe, sets: Sequence[str], processes: int | None) -> list[str]:
    """Of `finetune train` for any trial, without its run folder and its values."""
    arguments = [state.recipe]
    for one in sets:
        arguments += ["--set", one]
    if first.origins.get("tracking.group", "").startswith(("default", "derived")):
        arguments += ["--set", f"tracking.group={first.recipe.name}-sweep-{state.folder.name}"]
    return [*arguments, "--processes", str(ranks_of_trial(first.recipe.parallel, processes))]
