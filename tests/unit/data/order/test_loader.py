"""Proves that the loader gives each step its own batches in order, dummies among them, and looks no further ahead than it
must; and that augmentation learns the epoch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import psutil
import pytest

from finetune.data.order import loader
from finetune.data.order.assignment import Assignment
from finetune.data.order.loader import RankStep, choose_workers, evaluation_steps, fetched_ahead, iterate_batches
from finetune.errors import TrainingFailed


class Rows:
    """Examples that are their own position and the epoch in which they were fetched."""

    epoch = 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": index, "epoch": self.epoch}


def collate(examples: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(example["id"], example["epoch"]) for example in examples]


STEPS = [RankStep(0, 0, ((4, 2), ()), dummy_source=7), RankStep(1, 0, ((),), 3), RankStep(2, 1, ((5,), (6, 8)), 0)]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_step_has_its_batches_and_a_dummy_runs_its_source(workers: int) -> None:
    rows: Any = Rows()
    found = list(iterate_batches(rows, collate, STEPS, workers=workers))
    assert [step for step, _ in found] == STEPS
    assert [step.dummies for step in STEPS] == [(False, True), (True,), (False, False)]
    assert [batches for _, batches in found] == [
        [[(4, 0), (2, 0)], [(7, 0)]],
        [[(3, 0)]],
        [[(5, 1)], [(6, 1), (8, 1)]],
    ]


def test_no_step_is_taken_before_its_turn() -> None:
    taken: list[int] = []

    def steps() -> Iterator[RankStep]:
        for step in STEPS:
            taken.append(step.index)
            yield step

    rows: Any = Rows()
    batches = iterate_batches(rows, collate, steps())
    assert taken == []
    next(batches)
    assert taken == [0]


def test_an_evaluation_is_one_micro_batch_after_another() -> None:
    assignment = Assignment(ranks=(((0, 1), (4,)), ((2, 3), ())), loads=np.array([3.0, 2.0]), speed=np.ones(2))
    steps = [list(evaluation_steps(assignment, rank)) for rank in range(2)]
    assert [[step.micro_batches for step in own] for own in steps] == [[((0, 1),), ((4,),)], [((2, 3),), ((),)]]
    assert steps[1][1].dummies == (True,)


def test_a_request_to_stop_that_reaches_every_process_leaves_the_loader_to_its_rank() -> None:
    """As torchrun, srun, systemd and a terminal send it. SIGTERM by another process: a rank's own is for its workers."""
    rows: Any = Rows()
    steps = [RankStep(index, 0, ((index,),)) for index in range(60)]
    batches = iterate_batches(rows, collate, steps, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(worker.pid, number)
    for _ in range(2):
        os.waitpid(os.posix_spawnp("kill", ["kill", "-TERM", str(worker.pid)], os.environ), 0)
    time.sleep(0.05)  # a worker that ends does so at once
    assert [step.index for step, _ in batches] == list(range(1, 60))
    assert not psutil.pid_exists(worker.pid), "it ended with its work"


def test_a_rank_can_end_its_loader() -> None:
    rows: Any = Rows()
    batches = iterate_batches(rows, collate, STEPS * 100, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


class LostRows(Rows):
    """One of them can no longer be read."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 6:
            raise TrainingFailed("it is gone", where="train.jsonl:6", remedy="Bring it back.")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_loader_process_says_what_it_said_there(workers: int) -> None:
    batches = iterate_batches(LostRows(), collate, STEPS, workers=workers)  # type: ignore[arg-type]
    assert next(batches)[0] is STEPS[0] and next(batches)[0] is STEPS[1]
    with pytest.raises(TrainingFailed) as caught:
        next(batches)
    assert str(caught.value) == "train.jsonl:6: it is gone\n  Bring it back."


def test_loader_processes_follow_the_cores_that_ranks_leave() -> None:
    def chosen(
        asked: int | str = "auto", device: str = "cuda", decodes: bool = True, ranks: int = 1, cores: int = 16
    ) -> int:
        return choose_workers(asked, decodes=decodes, device=device, cores=cores // ranks)

    assert chosen() == 15 and chosen(ranks=2) == 7 and chosen(ranks=16) == 0
    assert chosen(device="cpu") == 4 and chosen(decodes=False) == 0
    assert chosen(3) == chosen(3, decodes=False) == 3 and chosen(0) == 0
    assert chosen(cores=192) == 16 and chosen(cores=192, ranks=8) == 16


def test_many_loader_processes_fetch_fewer_batches_each() -> None:
    assert [fetched_ahead(workers) for workers in (0, 1, 4, 5, 15)] == [0, 4, 16, 10, 30]


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms do not fork safely")
def test_loader_processes_are_forked_whatever_pythons_default_is() -> None:
    """Python 3.14's default is forkserver, whose processes would import torch again and get the examples in a pickle."""
    usual, rank, rows = multiprocessing.get_start_method(), os.getpid(), Rows()

    def parents(examples: Sequence[dict[str, Any]]) -> int:  # a function that cannot be pickled
        return os.getppid()

    multiprocessing.set_start_method("forkserver", force=True)
    try:
        found = list(iterate_batches(cast(Any, rows), parents, STEPS, workers=2))
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert {parent for _, batches in found for parent in batches} == {rank}


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_loader_processes_that_are_not_forked(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "START_METHOD", method)
    rows: Any = Rows()
    found = list(iterate_batches(rows, collate, STEPS, workers=1))
    assert [batches for _, batches in found][2] == [[(5, 1)], [(6, 1), (8, 1)]]
