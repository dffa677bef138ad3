"""Start the ranks of a verb, watch them, and restart a training that failed. No torch here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from finetune.data.sources.preflight import check_data
from finetune.distributed.env import from_environ
from finetune.distributed.failure import PeerFailed, report_failures
from finetune.distributed.held_folder import hold_folder
from finetune.distributed.launch import SUPERVISED, Launch
from finetune.distributed.meeting import given_folder
from finetune.distributed.replica_place import rank_number
from finetune.distributed.temporary_folder import own_temporary_folder
from finetune.distributed.waiting import WaitingRanks
from finetune.distributed.watching import run_workers
from finetune.ending import die_with_parent, end_process
from finetune.errors import EXIT_FAILED, Fault, RecipeFaults, TrainingFailed, UserError
from finetune.planning.engine import choose_engine
from finetune.planning.tensor import KEY, check_model
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.machine import count_gpus
from finetune.recipe.quotas import available_cores
from finetune.tasks import CARDS
from finetune.terminal import keep_output_in, print_beside_view, print_line
from finetune.tracking.run import Run
from finetune.training.checkpoint_manifest import step_of


def is_worker() -> bool:
    """Whether a launcher started this process, ours or anyone's."""
    return SUPERVISED in os.environ or from_environ() is not None


# Launchers that are the parents of their ranks, and live as long as these: what kills one, such as a SIGUSR1 that it does not
# know, would leave them to train alone. A shell that exports RANK may well end before them.
PARENTS = ("accelerate", "deepspeed", "torchrun")
MOST_RANKS, RANKS_PER_CORE = 64, 16  # on one machine: more of them would only end it


@contextmanager
def as_worker() -> Iterator[None]:
    """Around everything that a worker does: it saves and stops when its launcher is gone, and each failure of a supervised
    one is reported.
    """
    logs, env = os.environ.get(SUPERVISED), from_environ()
    if logs or (env is not None and env.launcher in PARENTS):
        die_with_parent()
    if not logs:
        with own_temporary_folder():
            try:
                yield
            except PeerFailed:  # the rank that failed has reported why
                end_process(EXIT_FAILED)
        return
    if (private := given_folder()) is not None:
        hold_folder(private)  # until this process ends, which may be after the supervising one
    with report_failures(rank_number(), Path(logs), supervised=True):
        yield


def check_recipe(loaded: LoadedRecipe) -> None:
    """What a quick look at the data tells, and at the model where it is to be sliced.

    Raises: RecipeFaults with the lines of the recipe; UserError for a model that cannot be sliced this way.
    """
    recipe = loaded.recipe
    faults = check_data(recipe, CARDS[recipe.task])
    if faults:
        raise RecipeFaults([_placed(fault, loaded) for fault in faults])
    if recipe.parallel.tensor > 1:
        from finetune.models.config import load_config  # transformers: a second that other recipes need not wait for

        check_model(load_config(recipe.model), recipe.parallel.tensor, where=loaded.origins.get(KEY, KEY))


def _placed(fault: Fault, loaded: LoadedRecipe) -> Fault:
    """The fault with its key as the recipe has it, and the line of that, or of the nearest section around it."""
    where, key = loaded.locate(fault.key)
    return replace(fault, where=fault.where or where, key=key)


def plan_launch(loaded: LoadedRecipe, processes: int | None) -> Callable[[Sequence[str]], Launch]:
    """How many ranks, on what: a launch for any arguments. The command line wins over the recipe, the recipe over the
    machine. Raises: UserError for a number of processes that does not fit.
    """
    parallel = loaded.recipe.parallel
    gpus = count_gpus()
    split = parallel.split
    auto = max(split, gpus // split * split)
    count = int(processes or (parallel.processes if parallel.processes != "auto" else auto))
    origin = "--processes" if processes else loaded.origins.get("parallel.processes", "parallel.processes")
    if count % split:
        way = "tensor" if parallel.tensor > 1 else "pipeline"
        raise UserError(
            f"{count} processes are not a multiple of the {split} that hold one copy of the model",
            where=origin,
            remedy=f"Start {split}, {2 * split}, ... processes, or set parallel.{way}: 1.",
        )
    if gpus and count > gpus:
        raise UserError(
            f"{count} processes on {gpus} GPUs",
            where=origin,
            remedy=f"At most one process per GPU: --processes {gpus // split * split}. The numbers stay the same."
            if gpus >= split
            else f"The {split} ranks that hold a model together need a GPU each.",
        )
    check_count(count, origin)
    deepspeed = choose_engine(parallel) == "deepspeed"
    return lambda arguments: Launch(arguments, count, deepspeed=deepspeed, cpu=gpus == 0, forks=gpus == 0)


@contextmanager
def early_ranks(launch: Launch, verb: str, recipe: str, sets: Sequence[str]) -> Iterator[WaitingRanks]:
    """Inside, the ranks of a launch that is yet to come import what they need; those that are not needed end. None on a CPU,
    where they would take the cores from the preparation of data, and several are forked.
    """
    preload = {"verb": verb, "recipe": recipe, "sets": list(sets)}
    waiting = WaitingRanks() if launch.forks else launch.start_early(preload)
    try:
        yield waiting
    finally:
        waiting.close()


def check_count(count: int, where: str) -> None:
    """Raises: UserError for more ranks than this machine can run, which would take it down."""
    most = max(MOST_RANKS, RANKS_PER_CORE * available_cores())
    if count > most:
        raise UserError(
            f"{count:,} processes on one machine",
            where=where,
            remedy=f"At most {most:,} are started here; several machines are started by a launcher (docs/launching.md).",
        )


def supervise(run: Run, launch: Callable[[str], Launch], resume: str, restarts: int) -> None:
    """Run the workers; after a failure restart from the last checkpoint, as long as steps are gained.

    launch: for a value of --resume. Raises: the error of the first failing rank, when restarts are used up or no step
    was gained.
    """
    gained_from = -1
    keep_output_in(run.logs / "launcher.log")
    while True:
        try:
            run_workers(launch(resume), run.logs, print_line, notify_meanwhile=print_beside_view)
            return
        except TrainingFailed as error:
            reached = _last_step(run)
            if restarts <= 0 or reached <= gained_from:
                raise
            restarts, gained_from = restarts - 1, reached
            if reached:  # resume from there, even if --resume named another checkpoint at first
                resume = "auto"
            print_line(f"{error}\nrestarting from step {reached} ({restarts} restarts left)")


def _last_step(run: Run) -> int:
    """The step of the newest published checkpoint; 0 if there is none."""
    steps = (step_of(path.name) for path in run.checkpoints.glob("step-*") if path.is_dir())
    return max((step for step in steps if step is not None), default=0)
