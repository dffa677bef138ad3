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
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.batch import Batch
from finetune.tasks.task import Task


@dataclass(frozen=True)
class StepResult:
    """loss: mean over the global units. grad_norm: global, before clipping. stop: some rank was asked to stop.

    padding, positions: summed over ranks. Of this rank: forward_pass, and waiting_seconds (for a pipeline's neighbors).
    nonfinite_ids: of the examples in micro-batches of this rank whose loss is not finite; then no rank has changed its
    weights. busy: some rank was.
    """

    loss: float
    units: int
    grad_norm: float
    padding: int
    positions: int
    stop: bool
    forward_pass: Stopwatch
    busy: bool = False
    waiting_seconds: float = 0.0
    nonfinite_ids: tuple[int, ...] = ()

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss)


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
    loss, stopping, working = session.sum(
        float(torch.stack(done.losses).sum()) if engine.owns_outputs else 0.0, float(stop), float(busy)
    )
    nonfinite_ids = tuple(i for b, x in zip(batches, done.losses, strict=True) if not math.isfinite(x) for i in b.ids)
    grad_norm = engine.step() if math.isfinite(loss) else math.nan
    return StepResult(
        loss=loss / max(units, 1),
        units=int(units),
        grad_norm=grad_norm,
        padding=int(padding),
        positions=int(positions),
        stop=stopping > 0,
        busy=working > 0,
        forward_pass=done.forward_pass,
        waiting_seconds=done.waiting_seconds,
        nonfinite_ids=nonfinite_ids,
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make dropout a function of (seed, step, rank): a resumed run draws what the uninterrupted one drew."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") % 2**63)
