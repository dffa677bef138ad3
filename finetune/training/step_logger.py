"""What is reported of the steps, and when: progress after each, a row every `log_every`, and advice where time is lost."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import psutil
import torch

from finetune.distributed.session import Session
from finetune.events import Listener
from finetune.training.cadences import TrainingLength
from finetune.training.energy import EnergyMeter, gpus_of
from finetune.training.step import StepResult
from finetune.training.telemetry import Telemetry
from finetune.training.timing import Timing, advise

MAX_RANKS = 64  # that have a figure of their own in a row
ADVICE_AFTER = 20.0  # seconds of training: shorter trainings get none


class StepLogger:
    """Between the loop and its listener. All ranks have one; only rank 0's calls the listener."""

    def __init__(self, session: Session, listener: Listener, length: TrainingLength, log_every: int) -> None:
        self.session, self.listener, self.length, self.log_every = session, listener, length, log_every
        self.timing = Timing(session, log_every)
        self.telemetry = Telemetry(listener.message if session.is_main else None)
        counted: list[str] = []
        if session.is_main and session.device.type == "cuda":
            counted = self.telemetry.run(
                "measuring energy", lambda: gpus_of(session.device, session.local_world_size), counted
            )
        self.energy = EnergyMeter(counted)
        self._advised: set[str] = set()
        self._units = self._padding = self._positions = 0
        self._seconds = self._whole = 0.0
        self._known: dict[str, float] = {}

    def step(
        self, step: int, result: StepResult, figures: Mapping[str, float], *, seconds: float, logged: bool
    ) -> None:
        """After each optimizer step. All ranks call it: on a logged step, which gets a row, they compare their seconds.

        Loss and norm are those of this step where they have been read, otherwise of the last step that was.
        """
        if result.is_read:
            self._known = {"loss": result.loss, "grad_norm": result.grad_norm}
        self._units, self._padding = self._units + result.units, self._padding + result.padding
        self._positions, self._seconds = self._positions + result.positions, self._seconds + seconds
        now = {
            **self._known,
            **figures,
            "units_per_second": self._units / max(self._seconds, 1e-9),
            "positions_per_second": (self._positions - self._padding) / max(self._seconds, 1e-9),
            "padding_share": self._padding / max(self._positions, 1),
        }
        memory = self.telemetry.run("measuring memory", lambda: _memory_bytes(self.session.device), 0)
        now |= {"memory_bytes": float(memory)} if memory else {}
        if self.session.is_main:
            self.listener.step(step=step, epoch=self.length.epochs(step), progress=now)
        if logged:
            self._log(step, now, memory)

    def row(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        """One line of metrics.jsonl. Rank 0 only."""
        finite = {key: value for key, value in figures.items() if math.isfinite(value)}
        epoch = round(self.length.epochs(step), 6)
        self.listener.row({"step": step, "epoch": epoch, "split": split, **finite, "time": time.time()})

    def _log(self, step: int, now: dict[str, float], memory: int) -> None:
        ranks = self.timing.gather(memory)  # outside of what may fail: every rank takes part
        nothing: dict[str, float] = {}
        timing = self.telemetry.run("timing steps", lambda: self.timing.summarize(step, ranks), nothing)
        self._whole += self._seconds
        self._units = self._padding = self._positions = 0
        self._seconds = 0.0
        if not self.session.is_main:
            return
        if self.timing.failure:
            self.telemetry.switch_off("measuring where a step's seconds go", self.timing.failure)
        joules = self.telemetry.run("measuring energy", self.energy.joules, None)
        energy = {} if joules is None else {"energy_joules": joules}
        memory_bytes = memory_of_ranks([rank.memory for rank in ranks])
        self.row(step, "train", {**now, **memory_bytes, **timing, **energy})
        late = timing and step > self.log_every and self._whole >= ADVICE_AFTER
        advice = (
            self.telemetry.run("advice on speed", lambda: advise(timing, shared_cpu=self._shares_cpu()), None)
            if late
            else None
        )
        if advice and advice[0] not in self._advised:
            self._advised.add(advice[0])
            self.listener.message(advice[1])

    def _shares_cpu(self) -> bool:
        """Whether all ranks compute on the cores of one machine."""
        session = self.session
        return session.device.type == "cpu" and session.local_world_size == session.world_size


def memory_of_ranks(memory: Sequence[int]) -> dict[str, float]:
    """{"memory_bytes_rank_0": bytes, ...} and the largest one, over several ranks; of more than MAX_RANKS the largest and the
    smallest only. A rank that could not measure (0) is left out.
    """
    known = {f"memory_bytes_rank_{rank}": float(one) for rank, one in enumerate(memory) if one}
    if len(memory) < 2 or not known:
        return {}
    extremes = {"memory_bytes_max": max(known.values()), "memory_bytes_min": min(known.values())}
    return {**known, **extremes} if len(memory) <= MAX_RANKS else extremes


def _memory_bytes(device: torch.device) -> int:
    """Peak on a GPU, resident on a CPU: of this rank's process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
