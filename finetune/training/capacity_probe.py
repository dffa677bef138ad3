"""The probe under `data.capacity: auto`: forward and backward passes of the real model on examples of the training data, in
micro-batches of growing size, before the first step. planning/capacity.py says what is concluded from them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from finetune.data.order.schedule import epoch_order
from finetune.data.table import Examples
from finetune.distributed.engines.engine import Engine, Rehearsal
from finetune.distributed.session import Session
from finetune.distributed.stopwatch import Stopwatch
from finetune.models.device import free_memory, ran_out_of_memory
from finetune.planning.capacity import PASSES, CapacityChoice, Measured, choose_capacity
from finetune.tasks.artifacts import TaskArtifacts
from finetune.tasks.task import Task

SHARE = 0.9  # of the memory that is free: the rest is for what fragments, and for what is not part of a pass


class CapacityProbe:
    """Measures micro-batches of a training. All ranks make one and call `choose`; examples, and so tokens, are the same on all.

    The training does not notice: gradients come to nothing, random generators and statistics are put back, and the loss is
    that of any other size.
    """

    def __init__(
        self,
        task: Task,
        artifacts: TaskArtifacts,
        engine: Engine,
        examples: Examples,
        *,
        seed: int,
        global_batch: int,
        state_bytes: int = 0,
    ) -> None:
        """examples: of the training. state_bytes: that weights, gradients and optimizer state of a rank take in the end."""
        self.artifacts, self.engine, self.session, self.task = artifacts, engine, engine.session, task
        self.examples = examples
        share = math.ceil(global_batch / self.session.replicas)
        self._order = epoch_order(len(examples), seed=seed, epoch=0)[:share].tolist()
        lengths = np.asarray(examples.costs, dtype=np.int64)
        self._ends = np.cumsum(lengths[self._order])
        self._longest = int(lengths.max())
        self._memory = PassMemory(self.session, state_bytes)
        self._began: float | None = None  # once the first pass is over, which also compiles and loads what passes need

    def choose(self, *, first: int, limit: int) -> CapacityChoice:
        """Leaves the model in training mode, which is where it is put at the first step."""
        device = self.session.device
        self.engine.model.train()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            choice = choose_capacity(self.measure, first=first, least=self._longest, limit=limit)
        free_memory(device)
        self._memory.forget()
        return choice

    def measure(self, capacity: int) -> Measured:
        """Passes of the examples that `capacity` tokens hold, of those that a rank has in a step, in random order."""
        count = max(1, int(np.searchsorted(self._ends, capacity, side="right")))
        seconds, filled = self._run([self.examples[index] for index in self._order[:count]])
        elapsed = 0.0 if self._began is None else time.perf_counter() - self._began
        seconds, filled, elapsed = self.session.maximum(seconds, filled, elapsed)
        tokens = int(self._ends[count - 1])
        return Measured(capacity, tokens, seconds, filled, count == len(self._order), elapsed)

    def _run(self, examples: Sequence[dict[str, Any]]) -> tuple[float, float]:
        """(seconds of the fastest pass but the first, share of the memory), of this rank; infinite seconds without memory."""
        seconds = math.inf
        try:
            self._memory.watch()
            batch = self.task.collate(self.artifacts, examples).to(self.session.device)
            for number in range(PASSES):
                taken = self._pass(batch)
                self._began = self._began or time.perf_counter()
                seconds = min(seconds, taken) if number else seconds
            return seconds, self._memory.filled()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if self.engine.rehearses_together or not ran_out_of_memory(error):
                raise  # other ranks wait in a collective of the pass
        free_memory(self.session.device)  # not before the exception is gone, which holds the frames of the pass
        return math.inf, math.inf

    def _pass(self, batch: Any) -> float:
        watch = Stopwatch(self.session.device)
        rehearsal = Rehearsal(
            self.task.forward, lambda outputs, batch: self.task.loss_sum(self.artifacts, outputs, batch)
        )
        with watch.running():
            self.engine.rehearse(batch, rehearsal)
        return watch.read()


class PassMemory:
    """How much of a GPU's memory passes take, of what is left for them. Nothing is known of a CPU's."""

    def __init__(self, session: Session, state_bytes: int) -> None:
        """All ranks make one before any of them computes: those of one GPU share what is free. Of the states, an optimizer
        allocates its own at its first step.
        """
        self._device = session.device if session.device.type == "cuda" else None
        self._before = self._room = 0
        if self._device is not None:
            sharing = math.ceil(session.local_world_size / max(1, torch.cuda.device_count()))
            free = torch.cuda.mem_get_info(self._device)[0] // sharing
            allocated = torch.cuda.memory_allocated(self._device)
            cached = torch.cuda.memory_reserved(self._device) - allocated
            self._room = int(SHARE * (free + cached)) - max(0, state_bytes - allocated)
        session.wait()

    def watch(self) -> None:
        """From here on."""
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)

    def filled(self) -> float:
        """Peak since `watch`, over the room for it."""
        if self._device is None:
            return 0.0
        taken = torch.cuda.max_memory_allocated(self._device) - self._before
        return taken / self._room if self._room > 0 else math.inf

    def forget(self) -> None:
        """The peak that the training reports is its own."""
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
