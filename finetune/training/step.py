"""One optimizer step: the loss is a sum over global units divided by the global count, on any number of ranks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune.distributed.engines.engine import Engine
from finetune.distributed.stopwatch import Stopwatch
from finetune.distributed.transfer import Transfer
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Batch
from finetune.tasks.task import Task


@dataclass(frozen=True)
class StepResult:
    """What a step gave. Counts are known at once; loss and gradient norm are on their way from the device, and reading them
    waits for the step to end there.

    figures: [loss sum over all ranks, global gradient norm before clipping]. units, padding, positions: summed over ranks.
    stop: some rank was asked to stop. busy: some rank is. Of this rank: forward_pass, waiting_seconds (for a pipeline's
    neighbors), and losses of micro-batches with the ids of their examples.
    """

    figures: Transfer
    units: int
    padding: int
    positions: int
    stop: bool
    forward_pass: Stopwatch
    busy: bool = False
    waiting_seconds: float = 0.0
    losses: Sequence[torch.Tensor] = ()
    ids: Sequence[tuple[int, ...]] = ()

    @property
    def is_read(self) -> bool:
        """Whether loss and norm are at hand."""
        return self.figures.is_read

    @property
    def loss(self) -> float:
        """Mean over the global units. Waits for the device."""
        return self.figures.read()[0] / max(self.units, 1)

    @property
    def grad_norm(self) -> float:
        """Global, before clipping; not finite where gradients overflowed. Waits for the device."""
        return self.figures.read()[1]

    @property
    def finite(self) -> bool:
        """Whether the loss is. Waits for the device."""
        return math.isfinite(self.loss)

    @property
    def nonfinite_ids(self) -> tuple[int, ...]:
        """Of the examples in micro-batches of this rank whose loss is not finite. Asks the device for each of them."""
        pairs = zip(self.ids, self.losses, strict=True)
        return tuple(i for ids, loss in pairs if not math.isfinite(float(loss)) for i in ids)


def train_step(
    task: Task,
    artifacts: TaskArtifacts,
    engine: Engine,
    batches: Sequence[Batch],
    *,
    dummies: Sequence[bool] = (),
    stop: bool,
    busy: bool = False,
    meanwhile: Callable[[], None] | None = None,
) -> StepResult:
    """All ranks call it; where the engine needs lockstep, with equally many micro-batches, dummies among them.

    dummies: which batches are stand-ins that weigh nothing (`RankStep.dummies`); (): none. stop, busy: of this rank.
    meanwhile: called once all passes are under way; a GPU still works on them then.

    The device is asked for nothing: weights are updated whether or not the loss is finite, and whoever saves them must have
    read it.
    """
    session = engine.session
    dummies = dummies or [False] * len(batches)
    counts = [
        (0 if dummy else task.weight(batch), batch.padding, batch.positions)
        for batch, dummy in zip(batches, dummies, strict=True)
        if session.is_replica_lead
    ]
    # The first forward pass does not wait for a rank that is late with its last update; the first backward pass does.
    counted = session.begin_sum(*(sum(count[i] for count in counts) for i in range(3)))

    def scale() -> float:
        """Engines average over replicas: this makes it the sum / units."""
        return session.replicas / max(counted.wait()[0], 1)

    def loss_sum(outputs: Any, batch: Batch, dummy: bool) -> torch.Tensor:
        loss = task.loss_sum(artifacts, outputs, batch)
        return loss * 0.0 if dummy else loss

    done = engine.accumulate(batches, lambda batch: task.forward(engine.model, batch), loss_sum, scale, dummies)
    if meanwhile is not None:
        meanwhile()
    units, padding, positions = counted.wait()
    stopping, working = session.sum(float(stop), float(busy))
    total = torch.stack(done.losses).sum().to(session.device)
    total = session.add_up(total if engine.owns_outputs else torch.zeros_like(total))
    norm = engine.step().to(session.device, torch.float64)
    return StepResult(
        figures=Transfer(torch.stack([total, norm])),
        units=int(units),
        padding=int(padding),
        positions=int(positions),
        stop=stopping > 0,
        busy=working > 0,
        forward_pass=done.forward_pass,
        waiting_seconds=done.waiting_seconds,
        losses=done.losses,
        ids=[batch.ids for batch in batches],
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout a function of (seed, step, rank): a resumed run draws what the uninterrupted one drew."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") % 2**63)
