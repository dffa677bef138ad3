"""This rank's micro-batches, step after step, collated ahead of time where worker processes are asked for."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, get_worker_info

from finetune.data.order.assignment import Assignment, MicroBatch
from finetune.data.order.transport import Packed, pack
from finetune.data.table import Examples
from finetune.ending import end_process
from finetune.errors import FinetuneError

PREFETCHED = 4  # batches per loader process
OF_MANY = 2  # the same where there are more than FEW_WORKERS: each batch takes memory
FEW_WORKERS = 4
# How loader processes start, whatever Python's default is (from 3.14 on: forkserver). A forked one has the examples and the
# libraries of its rank at once; it computes with numpy, Pillow and tensors of the CPU, and touches no GPU and no process group.
# Elsewhere Python's default, which sends them examples and collate function in a pickle.
START_METHOD = "fork" if sys.platform == "linux" else None
MOST_WORKERS = {"cuda": 16, "cpu": 4}  # of a rank, where the recipe leaves it open: so many keep the device busy

THROUGH_PIPES = (
    "shared memory (/dev/shm) is short: batches come from the loader processes through pipes, which costs this process time; "
    "in Docker, --shm-size=8g gives more"
)

Tell = Callable[[str], None]
B = TypeVar("B")  # a batch, whatever the collate function makes


def choose_workers(asked: int | str, *, decodes: bool, device: str, cores: int) -> int:
    """Loader processes of a rank. auto: none where examples lie encoded; where they are decoded when fetched, its other
    cores, up to MOST_WORKERS.

    asked: `data.workers`. device: torch's type of it. cores: that this machine has for each of its ranks.
    """
    if isinstance(asked, int):
        return asked
    return max(0, min(MOST_WORKERS[device], cores - 1)) if decodes else 0


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
    tell: Tell | None = None,
) -> Iterator[tuple[RankStep, list[B]]]:
    """Each step with its batches; `RankStep.dummies` says which are stand-ins.

    examples, collate: can be pickled, for platforms whose loader processes are not forked.
    No more steps are taken from `steps` than the loader fetches ahead. tell: takes a line for the user.
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
    batches: Iterator[B] = _arriving(loader, tell)
    for batch in batches:
        step = sampler.taken()
        yield step, [batch, *(next(batches) for _ in step.micro_batches[1:])]


def _arriving(batches: Iterable[Any], tell: Tell | None) -> Iterator[Any]:
    """The batches as they were collated.

    Raises: the error of a loader process as it was raised there; torch would put its traceback in place of the message.
    """
    for batch in batches:
        if isinstance(batch, _Failed):
            raise batch.error
        if not isinstance(batch, Packed):
            yield batch
            continue
        if tell is not None and not batch.is_shared:
            tell(THROUGH_PIPES)
            tell = None
        yield batch.unpack()


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
    end_process(0)


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
    """The collate function of examples, none of which failed; in a loader process, its batch is packed for the way."""

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], Any]) -> None:
        self._collate = collate

    def __call__(self, examples: Sequence[Any]) -> Any:
        failed = next((one for one in examples if isinstance(one, _Failed)), None)
        if failed is not None:
            return failed
        batch = self._collate(examples)
        return batch if get_worker_info() is None else pack(batch)


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
