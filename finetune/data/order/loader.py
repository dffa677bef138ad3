"""This rank's micro-batches, step after step, collated ahead of time where worker processes are asked for."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from finetune.data.order.assignment import Assignment, MicroBatch
from finetune.data.table import Examples
from finetune.errors import FinetuneError

PREFETCHED = 4  # batches per loader process
OF_MANY = 2  # the same where there are more than FEW_WORKERS: each batch takes shared memory
FEW_WORKERS = 4
BYTES_PER_PIXEL = 12  # of an example that is decoded when fetched, at most: three channels in float32
# How loader processes start, whatever Python's default is (from 3.14 on: forkserver). A forked one has the examples and the
# libraries of its rank at once; it computes with numpy, Pillow and tensors of the CPU, and touches no GPU and no process group.
# Elsewhere Python's default, which sends them examples and collate function in a pickle.
START_METHOD = "fork" if sys.platform == "linux" else None
MOST_WORKERS = {"cuda": 16, "cpu": 4}  # of a rank, where the recipe leaves it open: so many keep the device busy

Tell = Callable[[str], None]
B = TypeVar("B")  # a batch, whatever the collate function makes


def choose_workers(
    asked: int | str, *, decodes: bool, device: str, local_ranks: int, batch_bytes: int = 0, tell: Tell | None = None
) -> int:
    """Loader processes of a rank. auto: none where examples lie encoded; where they are decoded when fetched, what cores
    the ranks of this machine leave, up to MOST_WORKERS, and no more than shared memory has room for batches of.

    asked: `data.workers`. device: torch's type of it. batch_bytes: of one batch, at most. tell: takes a line for the user.
    """
    if isinstance(asked, int):
        return asked
    if not decodes:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = workers = max(0, min(MOST_WORKERS[device], cores // local_ranks - 1))
    room = _shared_memory() // local_ranks
    while fetched_ahead(workers) * batch_bytes > room:
        workers -= 1
    if workers < wanted and tell is not None:
        tell(
            f"{workers} loader processes in place of {wanted}: shared memory has {room / 2**20:,.0f} MiB for each rank; "
            "in Docker, --shm-size=8g gives more"
        )
    return workers


def _shared_memory() -> int:
    """Bytes that are free where processes hand over batches."""
    folder = Path("/dev/shm")
    return shutil.disk_usage(folder).free if folder.is_dir() else 1 << 62


def fetched_ahead(workers: int) -> int:
    """Batches that `workers` loader processes fetch ahead together."""
    return workers * (PREFETCHED if workers <= FEW_WORKERS else OF_MANY)


@dataclass(frozen=True)
class RankStep:
    """What this rank computes in one step: micro-batches as positions of examples.

    An empty micro-batch, (), is a dummy: a stand-in that weighs nothing, run where other ranks have one more, so that
    collectives stay aligned. dummy_source: the example that a dummy runs. cost: of this rank's examples; imbalance: time
    of the busiest rank over that of an even share.
    """

    index: int
    epoch: int
    micro_batches: tuple[MicroBatch, ...]
    dummy_source: int = 0
    cost: float = 0.0
    imbalance: float = 1.0

    @property
    def dummies(self) -> tuple[bool, ...]:
        """Which micro-batches are dummies: ((3, 1), ()) -> (False, True)."""
        return tuple(not micro for micro in self.micro_batches)


def evaluation_steps(assignment: Assignment, rank: int) -> Iterator[RankStep]:
    """One pass over a split, one micro-batch at a time."""
    for index, micro in enumerate(assignment.ranks[rank]):
        yield RankStep(index, 0, (micro,))


def iterate_batches(
    examples: Examples,
    collate: Callable[[Sequence[dict[str, Any]]], B],
    steps: Iterable[RankStep],
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[RankStep, list[B]]]:
    """Each step with its batches; `RankStep.dummies` says which are stand-ins.

    examples, collate: can be pickled, for platforms whose loader processes are not forked.
    No more steps are taken from `steps` than the loader fetches ahead.
    """
    sampler = _StepSampler(steps)
    loader = DataLoader(
        _ExamplesByEpoch(examples),
        batch_sampler=sampler,
        collate_fn=_Collate(collate),
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=fetched_ahead(workers) // workers if workers else None,
        worker_init_fn=_outlast_requests if workers else None,
        multiprocessing_context=START_METHOD if workers else None,
    )
    batches: Iterator[B] = _unless_failed(loader)
    for batch in batches:
        step = sampler.taken()
        yield step, [batch, *(next(batches) for _ in step.micro_batches[1:])]


def _unless_failed(batches: Iterable[Any]) -> Iterator[Any]:
    """Raises: the error of a loader process as it was raised there; torch would put its traceback in place of the message."""
    for batch in batches:
        if isinstance(batch, _Failed):
            raise batch.error
        yield batch


def _outlast_requests(worker: int) -> None:
    """In a loader process: nobody but its own rank ends it.

    A request to stop often reaches every process of a training at once: Ctrl-C in a terminal, SIGTERM from torchrun, srun or
    systemd. The rank finishes its step and saves, for which it needs its loader processes: torch would end them on SIGTERM,
    and the rank with them, by an error.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    rank = multiprocessing.parent_process()
    if rank is None or not hasattr(signal, "sigwaitinfo"):  # macOS has none
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for, args=(rank.pid,), daemon=True).start()


def _end_for(rank: int | None) -> None:
    """Wait for the SIGTERM that comes from process `rank`, which terminates a loader process that does not end by itself."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != rank:
        pass
    os._exit(0)


class _ExamplesByEpoch(Dataset):
    """Examples looked up by (position, epoch), so that augmentation in a worker knows the epoch."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | _Failed:
        position, epoch = key
        if getattr(self.examples, "epoch", epoch) != epoch:
            self.examples.epoch = epoch  # type: ignore[attr-defined]
        try:
            return self.examples[position]
        except FinetuneError as error:
            return _Failed(error)


@dataclass(frozen=True)
class _Failed:
    """Stands for an example, or for its batch: an error for the user."""

    error: FinetuneError


class _Collate:
    """The collate function of examples, none of which failed."""

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], Any]) -> None:
        self._collate = collate

    def __call__(self, examples: Sequence[Any]) -> Any:
        return next((one for one in examples if isinstance(one, _Failed)), None) or self._collate(examples)


class _StepSampler:
    """Positions for the loader, and beside them a queue of the steps that they belong to."""

    def __init__(self, steps: Iterable[RankStep]) -> None:
        self._steps = steps
        self._queue: deque[RankStep] = deque()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            self._queue.append(step)
            for micro in step.micro_batches:
                yield [(position, step.epoch) for position in micro or (step.dummy_source,)]

    def taken(self) -> RankStep:
        """The step whose first batch was just handed out."""
        return self._queue.popleft()
