"""What a row says of a step's seconds in a pipeline: the share in which stages wait for each other, and what helps."""

from types import SimpleNamespace

import pytest
import torch

from finetune.training import timing
from finetune.training.timing import Timing, advise


def two_ranks(mine):
    """The other rank waited a second longer of its four, in as many steps."""
    data, busy, wall, idle = mine
    return [mine, (data, busy, wall, idle + 1.0)]


@pytest.fixture
def calm(monkeypatch):
    monkeypatch.setattr(timing.os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def test_the_bubble_is_the_mean_share_over_ranks(calm):
    session = SimpleNamespace(device=torch.device("cpu"), all_gather=two_ranks)
    kept = Timing(data=0.0, busy=2.0, wall=4.0, idle=1.0, steps=2)
    told = kept.summarise(session)
    assert told["bubble"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert kept.idle == 0.0
    assert advise(told) == ("bubble", f"38% of a step {timing.BUBBLE}")
    assert advise({**told, "bubble": 0.1}) is None  # as good as can be: a larger micro-batch would be worse


def test_no_bubble_without_a_pipeline(calm):
    session = SimpleNamespace(device=torch.device("cpu"), all_gather=lambda mine: [mine, mine])
    told = Timing(data=0.0, busy=1.0, wall=4.0, steps=2).summarise(session)
    assert "bubble" not in told
    assert advise(told)[0] == "communication_seconds"
