"""No telemetry ends a training: each kind fails here on purpose, is reported once, and the rest goes on."""

from types import SimpleNamespace

import pytest
import torch

from finetune.distributed import tracer
from finetune.distributed.stopwatch import Stopwatch
from finetune.distributed.tracer import Tracer
from finetune.distributed.transfer import Transfer
from finetune.training import step_logger as step_logger_module
from finetune.training.cadences import TrainingLength
from finetune.training.step import StepResult
from finetune.training.step_logger import StepLogger
from finetune.training.telemetry import Telemetry
from finetune.training.timing import Timing

CPU = torch.device("cpu")


def broken(*args, **kwargs):
    raise AttributeError("'_KinetoEvent' object has no attribute 'activity_type'")


class Listener:
    def __init__(self):
        self.messages, self.rows = [], []

    def message(self, text):
        self.messages.append(text)

    def row(self, row):
        self.rows.append(row)

    def step(self, **values):
        pass


class Session:
    """Two ranks, of which the other sees what `other` makes of this one's."""

    device, world_size, is_main = CPU, 2, True

    def __init__(self, other=lambda seen: seen):
        self.other, self.gathered = other, 0

    def all_gather(self, seen):
        self.gathered += 1
        return [seen, self.other(seen)]


def train(session, steps=12):
    """The loop's way through timing and telling, a row each step."""
    listener = Listener()
    told = StepLogger(session, listener, TrainingLength(steps, steps), log_every=1)
    for step in range(1, steps + 1):
        started = told.timing.start(step)
        torch.ones(8, 8) @ torch.ones(8, 8)
        seconds = told.timing.end(started, data=0.0)
        result = StepResult(Transfer(torch.ones(2)), 1, 0, 1, False, Stopwatch(CPU))
        told.step(step, result, {}, seconds=seconds, logged=True)
    assert [row["step"] for row in listener.rows] == list(range(1, steps + 1))
    assert session.gathered == steps, "every rank takes part in every collective, whatever failed"
    return listener, told


def test_steps_are_timed_where_nothing_fails():
    listener, _ = train(Session())
    assert not listener.messages
    assert {"step_seconds", "compute_seconds", "memory_bytes"} <= set(listener.rows[-1])


@pytest.mark.parametrize("place", ["profile", "_on_cpu"])
def test_a_tracer_that_fails_to_start_or_to_stop(monkeypatch, place):
    monkeypatch.setattr(tracer, place, broken)
    listener, told = train(Session())
    (message,) = listener.messages
    assert message.startswith(
        "measuring where a step's seconds go failed and is switched off; training goes on (rank 0: "
    )
    assert "activity_type" in message
    assert "step_seconds" in listener.rows[-1] and "compute_seconds" not in listener.rows[-1]
    assert told.timing.own_seconds is None and not told.timing._tracer.running


def test_a_tracer_that_fails_on_another_rank_after_a_trace():
    def other(seen):
        return seen._replace(trace="RuntimeError: CUPTI") if session.gathered > 6 else seen

    session = Session(other)
    listener, _ = train(session)
    (message,) = listener.messages
    assert "rank 1: RuntimeError: CUPTI" in message
    assert "compute_seconds" in listener.rows[5] and "compute_seconds" not in listener.rows[-1]


@pytest.mark.parametrize(
    ("where", "name", "lost"),
    [
        (Timing, "summarize", "step_seconds"),
        (Timing, "_split", "step_seconds"),
        (step_logger_module, "_memory_bytes", "memory_bytes"),
    ],
)
def test_figures_that_fail_are_left_out(monkeypatch, where, name, lost):
    monkeypatch.setattr(where, name, broken)
    listener, _ = train(Session())
    assert len(listener.messages) == 1 and "training goes on" in listener.messages[0]
    assert lost not in listener.rows[-1] and listener.rows[-1]["loss"] == 1.0


def test_advice_that_fails(monkeypatch):
    monkeypatch.setattr(step_logger_module, "ADVICE_AFTER", 0.0)
    monkeypatch.setattr(step_logger_module, "advise", broken)
    assert len(train(Session())[0].messages) == 1


def test_events_on_a_gpu_that_do_not_tell_annotations_are_not_measured():
    """With neither activity_type (torch 2.12) nor is_user_annotation (2.11), an annotation looks like a kernel."""
    made = Tracer(CPU)
    made.start()
    made.device = SimpleNamespace(type="cuda")
    made._finish_kernels = lambda: None
    event = SimpleNamespace(device_type=lambda: torch.autograd.DeviceType.CUDA, name=lambda: "sgemm")
    made._profile = SimpleNamespace(
        stop=made._profile.stop, profiler=SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: [event]))
    )
    assert made.stop() is None and "is_user_annotation" in made.failure
    made.start()
    assert not made.running


def test_a_failure_is_reported_once_and_the_call_is_not_made_again(capsys):
    calls, told = [], []

    def call():
        calls.append(1)
        raise OSError("no space left")

    telemetry = Telemetry(told.append)
    assert [telemetry.run("x", call, 5), telemetry.run("x", call, 5), telemetry.run("y", lambda: 3, 5)] == [5, 5, 3]
    assert told == ["x failed and is switched off; training goes on (OSError: no space left)"] and calls == [1]
    Telemetry(None).run("x", call, 5)
    assert "x failed" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        telemetry.run("z", lambda: (_ for _ in ()).throw(KeyboardInterrupt()), None)
