"""Where trials run: the GPUs of this machine in groups, or a number of trials at a time on its CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from finetune.errors import UserError
from finetune.recipe.machine import count_gpus
from finetune.recipe.parallel import ParallelSection
from finetune.recipe.quotas import THREADS, threads_each
from finetune.units import format_number


@dataclass(frozen=True)
class Slot:
    """A place for one trial at a time. environment: of its processes, beside this process's own."""

    name: str
    environment: Mapping[str, str]


def ranks_of_trial(parallel: ParallelSection, processes: int | None) -> int:
    """Ranks of each trial: as asked; where the recipe leaves it open, as few as hold the model."""
    asked = processes or parallel.processes
    return parallel.replica_size if asked == "auto" else int(asked)


def list_slots(ranks: int, parallel: int | None) -> tuple[list[Slot], list[str]]:
    """(slots, notes). ranks: of each trial. parallel: at most as many trials at a time.

    Raises: UserError if the machine has fewer GPUs than that takes.
    """
    count = count_gpus()
    if not count:
        return _cpu_slots(ranks, parallel or 1), []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",") if name.strip()] if visible else list(map(str, range(count)))
    groups = [names[start : start + ranks] for start in range(0, len(names) - ranks + 1, ranks)]
    if len(groups) < (parallel or 1):
        raise UserError(
            f"{format_number(parallel or 1, 'trial')} of {format_number(ranks, 'rank')} on {len(names)} GPUs",
            where="--parallel" if parallel else "--processes",
            remedy=f"At most {len(groups)} fit at a time." if groups else "A trial takes one GPU for each rank.",
        )
    groups = groups[:parallel]
    idle = len(names) - ranks * len(groups)
    notes = [f"{idle} of {len(names)} GPUs stay idle: {len(groups)} trials at a time, {ranks} each"] if idle else []
    return [Slot(f"GPU {','.join(group)}", {"CUDA_VISIBLE_DEVICES": ",".join(group)}) for group in groups], notes


def _cpu_slots(ranks: int, trials: int) -> list[Slot]:
    """Trials divide the cores, as the ranks of one do."""
    threads = {} if THREADS in os.environ else {THREADS: str(threads_each(ranks * trials))}
    return [Slot(f"CPU {number}" if trials > 1 else "CPU", threads) for number in range(trials)]
