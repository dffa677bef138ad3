"""How many ranks a recipe is trained on, and with what they are started. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from finetune.distributed.launch import Launch
from finetune.distributed.waiting import WaitingRanks
from finetune.errors import UserError
from finetune.planning.engine import choose_engine
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.machine import count_gpus
from finetune.recipe.quotas import available_cores

MOST_RANKS, RANKS_PER_CORE = 64, 16  # on one machine: more of them would only end it


def plan_launch(loaded: LoadedRecipe, processes: int | None) -> Callable[[Sequence[str]], Launch]:
    """How many ranks, on what: a launch for any arguments. The command line wins over the recipe, the recipe over the
    machine. Raises: UserError for a number of processes that does not fit.
    """
    parallel = loaded.recipe.parallel
    gpus = count_gpus()
    size = parallel.replica_size
    auto = max(size, gpus // size * size)
    count = int(processes or (parallel.processes if parallel.processes != "auto" else auto))
    origin = "--processes" if processes else loaded.origins.get("parallel.processes", "parallel.processes")
    if count % size:
        way = "tensor" if parallel.tensor > 1 else "pipeline"
        raise UserError(
            f"{count} processes are not a multiple of the {size} that hold one copy of the model",
            where=origin,
            remedy=f"Start {size}, {2 * size}, ... processes, or set parallel.{way}: 1.",
        )
    if gpus and count > gpus:
        raise UserError(
            f"{count} processes on {gpus} GPUs",
            where=origin,
            remedy=f"At most one process per GPU: --processes {gpus // size * size}. The numbers stay the same."
            if gpus >= size
            else f"The {size} ranks that hold a model together need a GPU each.",
        )
    check_count(count, origin)
    deepspeed = choose_engine(parallel) == "deepspeed"
    return lambda arguments: Launch(arguments, count, deepspeed=deepspeed, cpu=gpus == 0, forks=gpus == 0)


def check_count(count: int, where: str) -> None:
    """Raises: UserError for more ranks than this machine can run, which would take it down."""
    most = max(MOST_RANKS, RANKS_PER_CORE * available_cores())
    if count > most:
        raise UserError(
            f"{count:,} processes on one machine",
            where=where,
            remedy=f"At most {most:,} are started here; several machines are started by a launcher (docs/launching.md).",
        )


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
