"""Proves that rank 0 does not wait for ever for a rank that says nothing, and waits for one that does."""

import collections
import time

import pytest

from finetune.distributed.failure import PeerFailed
from finetune.errors import TrainingFailed
from finetune.inference.prediction.heartbeat import Heartbeat, Listening


class OneStore:
    """A session of one rank, and its store; all of them share the counters."""

    def __init__(self, rank, counters):
        self.rank, self.world_size, self.counters, self.store = rank, 3, counters, self

    def count(self, name, amount=1):
        self.counters[name] += amount
        return self.counters[name]


@pytest.fixture
def sessions():
    counters = collections.Counter()
    return [OneStore(rank, counters) for rank in range(3)]


def listen(listening, seconds):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        listening.check()
        time.sleep(0.005)


def test_a_silent_rank_is_named(sessions):
    with Heartbeat(sessions[1], seconds=0.01):
        listening = Listening(sessions[0], silence=0.4, every=0.01)
        with pytest.raises(TrainingFailed, match="nothing was heard") as ended:
            listen(listening, 10)
    assert ended.value.where == "rank 2"


def test_ranks_that_beat_or_are_done_are_waited_for(sessions):
    with Heartbeat(sessions[2], seconds=0.01):
        pass
    with Heartbeat(sessions[1], seconds=0.01):
        listen(Listening(sessions[0], silence=0.4, every=0.01), 1.0)


def test_a_rank_that_fails_ends_the_others(sessions):
    listening = Listening(sessions[0], silence=10, every=0.01)
    with pytest.raises(ValueError, match="a fault"), Heartbeat(sessions[1], seconds=0.01):
        raise ValueError("a fault")
    time.sleep(0.02)
    with pytest.raises(PeerFailed):
        listening.check()
