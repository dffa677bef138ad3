"""`finetune train`: from a recipe to a run. This process supervises; the ranks work in workers/train.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from finetune.app.adapter_names import check_adapter_names
from finetune.app.launch_plan import early_ranks, plan_launch
from finetune.app.opening import open_recipe
from finetune.app.preparation.child import ensure_prepared
from finetune.app.preparation.request import Request
from finetune.app.recipe_check import check_recipe
from finetune.app.runs import choose_run, find_run, kept_run, leave_folders, result_lines, resume_command
from finetune.app.supervise import supervise
from finetune.distributed.launch import Launch
from finetune.distributed.waiting import WaitingRanks
from finetune.ending import die_with_parent
from finetune.errors import Stopped, UserError
from finetune.recipe.trust import trust_remote_code
from finetune.terminal import print_line
from finetune.tracking.run import Run


def train(
    *,
    recipe: str,
    sets: list[str],
    processes: int | None,
    run_dir: Path | None,
    resume: str,
    restarts: int,
    data_changed: bool = False,
) -> None:
    """Train a recipe to the end, from its last checkpoint if there is one. data_changed: even if the data is not the same.

    Raises: UserError before anything starts; TrainingFailed or Stopped as the first failing rank reported it.
    """
    if any(name.startswith("ACCELERATE_") for name in os.environ):
        print_line("note: accelerate started one process, without ranks; the ranks are started from here")
        print_line("      (on a CPU it starts several only with --use_deepspeed, or ds_configs/accelerate/cpu.yaml)")
        die_with_parent()  # accelerate does not pass signals on: when it is ended, this process saves and stops
    run_dir = _plain_folder(run_dir)
    loaded = open_recipe(recipe, sets)
    for warning in loaded.warnings:
        print_line(f"note: {warning}")
    check_recipe(loaded)
    launch = plan_launch(loaded, processes)  # what it refuses leaves no run folder
    with early_ranks(launch(["train", recipe]), "train", recipe, sets) as waiting:
        found = find_run(loaded, run_dir, resume)
        if found is None or found.status != "done":  # what preparation refuses leaves no run folder, either
            kept = kept_run(loaded.recipe, run_dir, resume)
            ensure_prepared(Request.of(loaded.recipe, kept, data_changed=data_changed))
            check_adapter_names(loaded.recipe)
        try:
            run = choose_run(loaded, run_dir, resume)
            if (
                loaded.recipe.model.trust_remote_code
            ):  # the user's recipe says so; the ranks read the copy in the run folder
                trust_remote_code()
            if run is not None:
                again = resume_command(run, processes=processes, data_changed=data_changed, restarts=restarts)
                with _say_how_to_resume(again):
                    _train(run, launch, waiting, resume, restarts, data_changed=data_changed)
        finally:
            leave_folders()


def _plain_folder(folder: Path | None) -> Path | None:
    """The folder as every program takes it: one called -x or ~x in full. Raises: UserError for a name that is no text."""
    if folder is None:
        return None
    try:
        str(folder).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"the name of the folder is not UTF-8: {str(folder)!r}", where="--run-dir", remedy="Give another name."
        ) from None
    return folder.absolute() if str(folder).startswith(("-", "~")) else folder


@contextmanager
def _say_how_to_resume(command: str) -> Iterator[None]:
    """Around a training: when it is stopped or interrupted, the command that resumes this run is shown."""
    try:
        yield
    except Stopped as error:
        raise Stopped(error.what, where=error.where, remedy=f"Resume with: {command}") from None
    except KeyboardInterrupt:
        print_line(f"interrupted; resume with: {command}")
        raise


def _train(
    run: Run,
    launch: Callable[[Sequence[str]], Launch],
    waiting: WaitingRanks,
    resume: str,
    restarts: int,
    *,
    data_changed: bool,
) -> None:
    """Supervise it to the end, and say what came of it."""
    arguments = ["train", str(run.recipe_file), "--run-dir", str(run.path)]
    arguments += ["--data-changed", "--resume"] if data_changed else ["--resume"]
    resume = "auto" if resume == "never" else resume  # the run is a new one already
    supervise(run, lambda resume: replace(launch([*arguments, resume]), waiting=waiting), resume, restarts)
    for line in result_lines(run):
        print_line(line)
