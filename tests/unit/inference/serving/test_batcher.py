"""The batcher: every example once, in batches of similar cost, and no request waits for another one's many rows."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from finetune.inference.answering import Answered, Chunk, Outcome, RowError
from finetune.inference.serving.batcher import PADDING, Batcher, Pending, Queue
from finetune.tasks.batch import Answer


class Small:
    """An Answerer: the answer is the example's length. Waits at `gate` before each chunk."""

    budget = 160

    def __init__(self) -> None:
        self.chunks: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.ahead = False

    def cost(self, example: dict[str, Any]) -> int:
        return len(example["input_ids"])

    def run(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Outcome]]]:
        taken = iter(chunks)
        following = next(taken, None)
        while following is not None:
            chunk, following = following, next(taken, None) if self.ahead else None
            self.gate.wait(10)
            if self.error is not None:
                raise self.error
            self.chunks.append([len(example["input_ids"]) for example in chunk.examples])
            answers = [Answer(example["id"], {"length": len(example["input_ids"])}) for example in chunk.examples]
            yield chunk, [Answered(answer) for answer in answers]
            if not self.ahead:
                following = next(taken, None)


class Asked:
    """A request's outcomes."""

    def __init__(self, lengths: list[int]) -> None:
        self.examples = [{"input_ids": [0] * length} for length in lengths]
        self.outcomes: dict[int, Outcome] = {}
        self.complete = threading.Event()

    def done(self, place: int, outcome: Outcome) -> None:
        assert place not in self.outcomes
        self.outcomes[place] = outcome
        if len(self.outcomes) == len(self.examples):
            self.complete.set()

    def put(self, batcher: Batcher) -> Pending:
        return batcher.put(self.examples, range(len(self.examples)), self.done)

    def lengths(self) -> list[Any]:
        assert self.complete.wait(10)
        outcomes = [self.outcomes[place] for place in range(len(self.examples))]
        return [one.answer.values["length"] if isinstance(one, Answered) else one.kind for one in outcomes]


def queue_of(*requests: list[int], budget: int = 160) -> Queue:
    queue = Queue(budget)
    for costs in requests:
        queue.add(Pending(lambda place, outcome: None), [{}] * len(costs), range(len(costs)), costs)
    return queue


@pytest.mark.parametrize("seed", range(5))
def test_chunks_hold_every_example_once_within_the_budget_and_with_little_padding(seed: int) -> None:
    draw = random.Random(seed)
    requests = [[draw.randint(1, 60) for _ in range(draw.randint(1, 40))] for _ in range(12)]
    queue, taken = queue_of(*requests), []
    while chunk := queue.take():
        costs = [one.cost for one in chunk]
        assert costs == sorted(costs)
        assert sum(costs) <= queue.budget
        assert max(costs) * len(costs) - sum(costs) <= queue.budget // PADDING
        taken += chunk
    assert len(queue) == 0
    assert len({one.order for one in taken}) == len(taken) == sum(map(len, requests))
    assert sorted(one.cost for one in taken) == sorted(cost for costs in requests for cost in costs)


def test_an_example_beyond_the_budget_is_alone() -> None:
    queue = queue_of([500, 10, 501])
    assert [[one.cost for one in queue.take()] for _ in range(3)] == [[500], [10], [501]]


def test_a_request_of_one_row_does_not_wait_behind_one_of_a_thousand() -> None:
    queue = queue_of([10] * 1000, [50])
    first, second = queue.take(), queue.take()
    assert [one.cost for one in first] == [10] * 16
    assert [one.cost for one in second] == [50]


def test_dropped_requests_leave_nothing() -> None:
    queue = Queue(100)
    gone, kept = Pending(lambda place, outcome: None), Pending(lambda place, outcome: None)
    queue.add(gone, [{}, {}], [0, 1], [5, 7])
    queue.add(kept, [{}], [0], [6])
    queue.drop(gone)
    assert [one.request for one in queue.take()] == [kept]
    assert not queue.take()


@pytest.fixture(params=[False, True], ids=["one at a time", "one ahead"])
def small(request: pytest.FixtureRequest) -> Small:
    answerer = Small()
    answerer.ahead = request.param
    return answerer


def make(answerer: Small, broken: list[BaseException] | None = None) -> Batcher:
    return Batcher(answerer, ran=lambda rows, seconds: None, broken=(broken if broken is not None else []).append)


def test_every_request_gets_its_own_answers(small: Small) -> None:
    batcher = make(small)
    draw = random.Random(0)
    requests = [Asked([draw.randint(1, 50) for _ in range(draw.randint(1, 30))]) for _ in range(40)]
    threads = [threading.Thread(target=asked.put, args=(batcher,)) for asked in requests]
    for thread in threads:
        thread.start()
    for asked in requests:
        assert asked.lengths() == [len(example["input_ids"]) for example in asked.examples]
    batcher.close()


def test_one_that_comes_alone_is_answered_without_another_one(small: Small) -> None:
    """Also by an answerer that takes the next chunk before it gives back the last one."""
    batcher = make(small)
    for _ in range(3):
        asked = Asked([3])
        asked.put(batcher)
        assert asked.lengths() == [3]
    batcher.close()


def test_what_comes_while_the_model_works_is_answered_together(small: Small) -> None:
    batcher = make(small)
    small.gate.clear()
    first = Asked([4])
    first.put(batcher)
    while batcher.waiting():
        pass
    others = [Asked([10]) for _ in range(8)]
    for asked in others:
        asked.put(batcher)
    small.gate.set()
    assert [asked.lengths() for asked in others] == [[10]] * 8
    assert first.lengths() == [4]
    assert max(map(len, small.chunks)) >= 7  # one may have been taken ahead, alone
    batcher.close()


def test_a_cancelled_request_is_not_computed(small: Small) -> None:
    small.ahead = False
    batcher = make(small)
    small.gate.clear()
    first, gone = Asked([4]), Asked([20] * 5)
    first.put(batcher)
    while batcher.waiting():
        pass
    batcher.cancel(gone.put(batcher))
    small.gate.set()
    assert first.lengths() == [4]
    batcher.close()
    assert small.chunks == [[4]]
    assert not gone.outcomes


def test_a_model_that_breaks_fails_what_waits_and_what_comes(small: Small) -> None:
    broken: list[BaseException] = []
    batcher = make(small, broken)
    small.gate.clear()
    small.error = RuntimeError("the device is gone")
    first, second = Asked([4]), Asked([50, 60])
    first.put(batcher)
    second.put(batcher)
    small.gate.set()
    assert first.lengths() == ["failed"]
    assert second.lengths() == ["failed", "failed"]
    later = Asked([5])
    later.put(batcher)
    assert later.lengths() == ["failed"]
    assert isinstance(later.outcomes[0], RowError)
    assert "the device is gone" in later.outcomes[0].message
    batcher.close()
    assert broken == [small.error]


def test_idle_is_told_once_after_each_busy_period(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.inference.serving.batcher.IDLE_SECONDS", 0.02)
    told: list[float] = []
    batcher = Batcher(small, ran=lambda rows, seconds: None, broken=print, idle=lambda: told.append(time.monotonic()))
    for period in (1, 2):
        asked = Asked([3])
        asked.put(batcher)
        assert asked.lengths() == [3]
        time.sleep(0.2)
        assert period <= len(told) <= period + 1  # one more where the thread was idle before the first request came
    batcher.close()
