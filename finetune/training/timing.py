"""Where a step's seconds go: computing, communicating, waiting for data, for the slowest rank, or for the host."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from finetune.distributed.session import Session
from finetune.distributed.tracer import Trace, Tracer

WORTH_REPORTING = 0.15  # share of a step that is worth a line of advice
FIRST_TRACE = 4  # steps
TRACING_SHARE = 0.005  # of the whole time may be spent on tracing

ADVICE = {
    "data_seconds": "waiting for data: raise data.workers, or store smaller images",
    "communication_seconds": "communication: a lower ZeRO stage, a larger parallel.micro_batch or fewer ranks would help",
    "slowest_seconds": "waiting for the slowest rank: look at cost_imbalance, or set parallel.rank_speed: auto",
    "host_seconds": "waiting for the host, which feeds the GPU too slowly: a larger parallel.micro_batch would help",
}
OF_SHARED_CORES = ("communication_seconds",)
BUBBLE = (
    "waiting for the neighboring stage (the bubble): a smaller parallel.micro_batch or a larger global batch would help"
)


class Seen(NamedTuple):
    """Of one rank, over some steps: seconds of waiting for data, of all, and of waiting for neighbors in a pipeline; the trace
    of a step, or why there is none; the memory of its process in bytes, 0 where it is not known.
    """

    data: float
    wall: float
    idle: float
    trace: Trace | str | None
    memory: int = 0


class Timing:
    """Seconds of this rank since the last log row, and what its latest traced step spent them on.

    One step in so many is traced, the same on all ranks: the first one with a row of its own from FIRST_TRACE on (what
    starts slowly has started by then), then as often as TRACING_SHARE allows. Rows between two traces take the shares of
    the latest. What even the least waiting rank spends in collectives is communication; what others spend there beyond
    that is waiting for the slowest.
    """

    def __init__(self, session: Session, log_every: int) -> None:
        self.session, self.log_every = session, log_every
        self.data = self.wall = 0.0
        self.idle = 0.0  # waiting for neighbors in a pipeline
        self.steps = 0
        self.failure = ""  # why nothing is traced any more, and on which rank; the same on all ranks
        self._tracer = Tracer(session.device)
        worth_it = session.world_size > 1 or session.device.type == "cuda"
        self._next_trace = float(FIRST_TRACE) if worth_it else math.inf
        self.own_seconds: float | None = None  # of the step traced last: all but what it spent in collectives
        self._fresh: Trace | None = None
        self._shares: list[Trace] = []  # of every rank, in the step traced last

    def start(self, step: int, *, traced: bool = False) -> float:
        """Before step `step` (from 1). traced: whether somebody needs its `own_seconds`."""
        if self._is_due(step) or traced:
            self._tracer.start()
        return time.perf_counter()

    def end(self, started: float, *, data: float, idle: float = 0.0) -> float:
        """After a step: its seconds, tracing included. Of these, data: in which the device waited for data; idle: in which
        this rank waited for a pipeline's neighbors.
        """
        wall = time.perf_counter() - started
        if self._tracer.running:
            self._fresh = self._tracer.stop()
            self.own_seconds = None if self._fresh is None else wall * (1 - self._fresh.communicating)
        elif self._tracer.failure:
            self.own_seconds = None
        self.wall, self.data, self.idle = self.wall + wall, self.data + data, self.idle + idle
        self.steps += 1
        return time.perf_counter() - started

    def gather(self, memory: int = 0) -> list[Seen]:
        """What every rank saw since the last call, which also clears. memory: of this rank. All ranks call it."""
        seen = Seen(self.data, self.wall, self.idle, self._tracer.failure or self._fresh, memory)
        self.data = self.wall = self.idle = 0.0
        self._fresh = None
        return self.session.all_gather(seen)

    def summarize(self, step: int, ranks: list[Seen]) -> dict[str, float]:
        """Means per step over all ranks since the last call, after step `step`, of what `gather` gave."""
        steps, count = max(self.steps, 1), len(ranks)
        self.steps = 0
        wall = sum(rank.wall for rank in ranks) / count / steps
        figures = {
            "step_seconds": max(rank.wall for rank in ranks) / steps,
            "data_seconds": sum(rank.data for rank in ranks) / count / steps,
        }
        self._note_failures([rank.trace for rank in ranks])
        if self._is_due(step):
            self._take([rank.trace for rank in ranks if isinstance(rank.trace, Trace)], step, figures["step_seconds"])
        if self._shares:
            figures |= self._split(wall, figures["data_seconds"])
        if any(rank.idle for rank in ranks):
            figures["bubble"] = sum(rank.idle / max(rank.wall, 1e-9) for rank in ranks) / count
        return figures

    def _note_failures(self, traces: list[Trace | str | None]) -> None:
        """Where one rank cannot trace, none does from now on, and rows have no shares."""
        failures = [f"rank {rank}: {trace}" for rank, trace in enumerate(traces) if isinstance(trace, str)]
        if failures and not self.failure:
            self.failure, self._next_trace, self._shares = failures[0], math.inf, []

    def _is_due(self, step: int) -> bool:
        return step >= self._next_trace and step % self.log_every == 0

    def _take(self, traces: list[Trace], step: int, step_seconds: float) -> None:
        """The traces of all ranks, and when to trace next; never again where a rank's profiler sees nothing."""
        if len(traces) < self.session.world_size:
            self._next_trace = math.inf
            return
        self._shares = traces
        self._next_trace = step + max(trace.seconds for trace in traces) / (TRACING_SHARE * max(step_seconds, 1e-9))

    def _split(self, wall: float, data: float) -> dict[str, float]:
        """Mean seconds of a step, divided as in the step traced last. Fetching data looks like computing on a CPU, and
        like waiting for the host on a GPU.
        """
        open_shares = [trace.communicating for trace in self._shares]
        mean = sum(open_shares) / len(open_shares)
        computing = sum(trace.computing for trace in self._shares) / len(self._shares)
        on_gpu = self.session.device.type == "cuda"
        figures = {
            "compute_seconds": max(0.0, computing * wall - (0.0 if on_gpu else data)),
            "communication_seconds": min(open_shares) * wall,
            "slowest_seconds": (mean - min(open_shares)) * wall,
        }
        if on_gpu:
            figures["host_seconds"] = max(0.0, (1 - computing - mean) * wall - data)
        return figures


def advise(figures: dict[str, float], *, shared_cpu: bool = False) -> tuple[str, str] | None:
    """(what, a line of advice) for the largest share of a step that is not computing, if it is worth a line.

    shared_cpu: all ranks share the cores of one machine. They then wait for each other's cores in a collective, which no
    setting of the recipe changes, so that nothing is advised about it.
    """
    if "bubble" in figures:
        return (
            ("bubble", f"{figures['bubble']:.0%} of each step is {BUBBLE}")
            if figures["bubble"] >= WORTH_REPORTING
            else None
        )
    candidates = [key for key in ADVICE if not (shared_cpu and key in OF_SHARED_CORES)]
    shares = {key: figures.get(key, 0.0) / max(figures["step_seconds"], 1e-9) for key in candidates}
    worst = max(shares, key=lambda key: shares[key])
    if shares[worst] < WORTH_REPORTING:
        return None
    return worst, f"{shares[worst]:.0%} of each step is {ADVICE[worst]}"
