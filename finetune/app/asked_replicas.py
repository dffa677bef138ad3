"""The replicas of a prediction: which of them are started again after a failure, and what is printed about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.distributed.folder_store import FolderStore
from finetune.distributed.launch import Launch
from finetune.distributed.rendezvous import private_folder
from finetune.distributed.replicas import (
    Decision,
    FailedReplica,
    ReplicaPlan,
    describe_replica,
    run_replicas,
    visible_gpus,
)
from finetune.inference.prediction.board import END, count_chunks, note_death
from finetune.inference.prediction.deaths import note_deaths
from finetune.inference.prediction.parts import Parts
from finetune.terminal import print_over_progress
from finetune.units import format_number


def predict_with_replicas(launch: Launch, size: int, parts: Parts, *, restarts: int, gpus_each: int) -> None:
    """Run `launch` as replicas of `size` ranks. restarts: of each replica, in a row; one that has answered something gets back
    what it had used up. gpus_each: of a rank.

    Raises: see run_replicas.
    """
    gpus = [] if launch.cpu else visible_gpus(launch.processes * gpus_each)
    plan = ReplicaPlan(launch.arguments, size, launch.processes // size, gpus)
    parts.logs.mkdir(parents=True, exist_ok=True)
    with private_folder(parts.logs) as folder:
        decide = _Restarts(parts, FolderStore(folder), size, restarts).decide
        run_replicas(plan, parts.logs, folder, decide, print_over_progress)


@dataclass
class _Restarts:
    """left: replica -> restarts, of those that have failed."""

    parts: Parts
    store: FolderStore
    size: int
    restarts: int
    left: dict[int, int] = field(default_factory=dict)

    def decide(self, failed: FailedReplica) -> Decision:
        """Tell the user, and have the chunks given out again that the replica held."""
        lines, gained = note_deaths(self.parts, failed.dead)
        taken, answered = count_chunks(self.store, failed.number, failed.attempt)
        note_death(self.store, failed.number, failed.attempt)
        left = self.restarts if gained or answered else self.left.get(failed.number, self.restarts)
        name, error = describe_replica(failed.number, self.size), failed.error
        held = taken - answered
        again = f"; {format_number(held, 'chunk')} that it held will be answered again" if held else ""
        if self.store.announced(END) is not None:
            decision, what = Decision.NOT_NEEDED, "is not needed any more: every row is answered"
        elif left > 0:
            decision, what = Decision.RESTART, f"starts again{again} ({format_number(left - 1, 'restart')} left)"
        else:
            others = f"{again} if others are left" if held else ""
            decision, what = Decision.GIVE_UP, f"is given up, as no restart is left{others}"
        self.left[failed.number] = left - 1
        for line in (": ".join(filter(None, (error.where, error.what))), *lines, f"{name} {what}"):
            print_over_progress(line)
        return decision
