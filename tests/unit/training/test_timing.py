"""What a row says of a step's seconds: shares as traced, when a step is traced, and what helps."""

from types import SimpleNamespace

import pytest
import torch

from finetune.distributed.tracer import Trace
from finetune.training import timing
from finetune.training.timing import Seen, Timing, advise


def session(device="cpu", world_size=2, other=None):
    """Two ranks that say the same, but for what `other` changes of the second's (data, wall, idle, trace)."""
    return SimpleNamespace(
        device=torch.device(device),
        world_size=world_size,
        all_gather=lambda mine: [mine, Seen(*other(*mine[:4]))] if other else [mine] * world_size,
    )


def summarized(kept, step, **values):
    for name, value in values.items():
        setattr(kept, name, value)
    return kept.summarize(step, kept.gather())


def test_the_bubble_is_the_mean_share_over_ranks():
    kept = Timing(session(other=lambda data, wall, idle, trace: (data, wall, idle + 1.0, trace)), 10)
    told = summarized(kept, 10, wall=4.0, idle=1.0, steps=2)
    assert told["bubble"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert kept.idle == 0.0
    assert advise(told) == ("bubble", f"38% of each step is {timing.BUBBLE}")
    assert advise({**told, "bubble": 0.1}) is None  # as good as can be: a larger micro-batch would be worse


def test_seconds_are_shared_out_as_the_traced_step_was():
    waits = Trace(computing=0.5, communicating=0.5, seconds=0.01)
    late = Trace(computing=0.9, communicating=0.1, seconds=0.01)
    kept = Timing(session(other=lambda data, wall, idle, trace: (data, wall, idle, late)), 10)
    told = summarized(kept, 10, wall=9.0, data=1.0, steps=10, _fresh=waits)
    assert told["step_seconds"] == pytest.approx(0.9)
    assert told["data_seconds"] == pytest.approx(0.1)
    assert told["compute_seconds"] == pytest.approx(0.7 * 0.9 - 0.1)
    assert told["communication_seconds"] == pytest.approx(0.1 * 0.9)
    assert told["slowest_seconds"] == pytest.approx(0.2 * 0.9)
    assert "bubble" not in told
    assert "host_seconds" not in told
    assert sum(told[key] for key in told if key != "step_seconds") == pytest.approx(0.9)
    assert advise(told)[0] == "slowest_seconds"
    again = summarized(kept, 20, wall=16.0, steps=10)  # not traced: the latest shares hold
    assert again["slowest_seconds"] == pytest.approx(0.2 * 1.6)


def test_a_gpu_without_work_waits_for_its_host():
    kept = Timing(session("cuda", world_size=1), 1)
    told = summarized(kept, 4, wall=2.0, data=0.1, steps=2, _fresh=Trace(0.6, 0.1, 0.01))
    assert told["host_seconds"] == pytest.approx(0.25)
    assert told["data_seconds"] == pytest.approx(0.05)
    assert sum(told[key] for key in told if key != "step_seconds") == pytest.approx(1.0)
    assert advise(told)[0] == "host_seconds"


def test_looking_costs_at_most_its_share_of_the_time():
    kept = Timing(session(), 10)
    assert [step for step in range(1, 31) if kept._is_due(step)] == [10, 20, 30]
    summarized(kept, 10, wall=1.0, steps=10, _fresh=Trace(1.0, 0.0, seconds=0.02))
    pause = 0.02 / timing.TRACING_SHARE / 0.1  # 40 steps of a tenth of a second
    assert [step for step in range(11, 71) if kept._is_due(step)] == [step for step in (50, 60, 70) if step >= pause]


def test_a_rank_that_cannot_trace_ends_it_for_all():
    kept = Timing(session(other=lambda data, wall, idle, trace: (data, wall, idle, None)), 10)
    told = summarized(kept, 10, wall=1.0, steps=10, _fresh=Trace(1.0, 0.0, 0.02))
    assert "compute_seconds" not in told
    assert not any(kept._is_due(step) for step in range(11, 200))
    alone = Timing(session(world_size=1), 1)
    assert not any(alone._is_due(step) for step in range(1, 200))  # one CPU process waits for nobody


def test_ranks_that_share_the_cores_of_one_machine_get_no_advice_on_communication():
    """The quickstart starts two ranks on a CPU on purpose."""
    figures = {"step_seconds": 1.0, "communication_seconds": 0.5, "data_seconds": 0.2}
    assert advise(figures)[0] == "communication_seconds"
    assert advise(figures, shared_cpu=True)[0] == "data_seconds", "what else is worth a line is still reported"
    assert advise({**figures, "data_seconds": 0.0}, shared_cpu=True) is None
