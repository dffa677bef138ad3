"""Where a step's seconds go: computing, communicating, waiting for data, waiting for the slowest rank."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from finetune.distributed.session import Session

WORTH_TELLING = 0.15  # share of a step that is worth a line of advice

ADVICE = {
    "data_seconds": "waits for data: raise data.workers, or store images smaller",
    "communication_seconds": "communicates: a lower ZeRO stage, a larger parallel.micro_batch, or fewer ranks would help",
    "slowest_seconds": "waits for the slowest rank: look at cost_imbalance, or set parallel.rank_speed: auto",
}
BUBBLE = "is waiting for the neighbouring stage (the bubble): a smaller parallel.micro_batch, or a larger global batch"


@dataclass
class Timing:
    """Seconds of this rank since the last log row.

    On a CPU a thread that waits for peers sleeps, so its processor time is what it computes, the rest of the step is
    waiting; what the least waiting rank waits is the communication itself, what others wait beyond that is for the
    slowest. On a GPU waiting hides inside kernels, and only data and the whole step are told.
    """

    data: float = 0.0
    busy: float = 0.0
    wall: float = 0.0
    idle: float = 0.0  # waiting for neighbours in a pipeline
    steps: int = 0

    def start(self) -> tuple[float, float]:
        """Before a step, after its data is here."""
        return time.perf_counter(), time.thread_time()

    def end(self, started: tuple[float, float], *, data: float, idle: float = 0.0) -> float:
        """After a step: its seconds. idle: those of them in which this rank waited for its neighbours in a pipeline."""
        wall = time.perf_counter() - started[0]
        self.busy += time.thread_time() - started[1]
        self.wall, self.data, self.idle = self.wall + wall, self.data + data, self.idle + idle
        self.steps += 1
        return wall

    def summarise(self, session: Session) -> dict[str, float]:
        """Means a step over all ranks since the last call, which also clears. All ranks call it."""
        ranks = session.all_gather((self.data, self.busy, self.wall, self.idle))
        steps, count = max(self.steps, 1), len(ranks)
        told = {
            "step_seconds": max(wall + data for data, _, wall, _ in ranks) / steps,
            "data_seconds": sum(data for data, *_ in ranks) / count / steps,
        }
        if session.device.type == "cpu" and count > 1:
            waits = [max(0.0, wall - busy) for _, busy, wall, _ in ranks]
            told["compute_seconds"] = sum(busy for _, busy, *_ in ranks) / count / steps
            told["communication_seconds"] = min(waits) / steps
            told["slowest_seconds"] = (sum(waits) / count - min(waits)) / steps
            if any(idle for *_, idle in ranks):
                told["bubble"] = sum(idle / max(wall, 1e-9) for *_, wall, idle in ranks) / count
        self.data = self.busy = self.wall = self.idle = 0.0
        self.steps = 0
        return told


def advise(told: dict[str, float]) -> tuple[str, str] | None:
    """(what, a line of advice) for the largest share of a step that is not computing, if it is worth a line."""
    cores = os.cpu_count() or 1
    if "compute_seconds" in told and os.getloadavg()[0] > 1.5 * cores:
        return None  # waiting for a processor looks like waiting for a peer
    if "bubble" in told:
        return ("bubble", f"{told['bubble']:.0%} of a step {BUBBLE}") if told["bubble"] >= WORTH_TELLING else None
    shares = {key: told.get(key, 0.0) / max(told["step_seconds"], 1e-9) for key in ADVICE}
    worst = max(shares, key=lambda key: shares[key])
    if shares[worst] < WORTH_TELLING:
        return None
    return worst, f"{shares[worst]:.0%} of a step {ADVICE[worst]}"
