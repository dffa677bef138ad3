"""What a trace says: spans add up once, communication hidden by computing costs nothing, and a late rank is seen as such."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from finetune.distributed.stopwatch import Stopwatch
from finetune.distributed.tracer import Tracer, _on_gpu, covered

CPU = torch.device("cpu")


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12))
def test_covered_counts_every_moment_once(pairs):
    spans = np.array([(start, start + length) for start, length in pairs], dtype=float).reshape(-1, 2)
    moments = {moment for start, length in pairs for moment in range(start, start + length)}
    assert covered(spans) == len(moments)


def one_late(pause):
    """Rank 1 is late at every collective; both multiply matrices for as long as `pause` or more."""
    model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)])
    model = torch.nn.parallel.DistributedDataParallel(model)
    x = torch.randn(64, 256)

    def step():
        ends = time.perf_counter() + pause * (1 + 3 * dist.get_rank())
        while time.perf_counter() < ends:
            model.module(x)
        model(x).sum().backward()

    step()
    tracer = Tracer(CPU)
    tracer.start()
    assert tracer.running
    step()
    trace = tracer.stop()
    assert not tracer.running
    return trace


def test_a_rank_that_waits_for_a_late_one_communicates_in_the_open(ranks):
    early, late = ranks.run(2, one_late, 0.1)
    assert 0.5 < early.communicating < 0.9  # it computes a tenth of a second of four
    assert late.communicating < 0.2
    for trace in (early, late):
        assert trace.computing + trace.communicating == pytest.approx(1.0)
        assert 0 < trace.seconds < 2.0


def test_nothing_seen_is_no_trace():
    tracer = Tracer(CPU)
    tracer.start()
    assert tracer.stop() is None


GPU, HOST = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
TIMELINE = [  # two kernels, of which NCCL's runs half beside the other; a marker, a wait and the host's calls
    ("ampere_sgemm_128x64", GPU, "kernel", 0, 100),
    ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", GPU, "kernel", 50, 100),
    ("Memcpy HtoD", GPU, "gpu_memcpy", 200, 10),
    ("nccl:all_reduce", GPU, "gpu_user_annotation", 0, 500),
    ("Stream Sync", GPU, "cuda_sync", 0, 450),
    ("cudaLaunchKernel", HOST, "cuda_runtime", 0, 400),
]


def of_torch_2_12(name, device, kind, start, length):
    """An event as Kineto returns it from torch 2.12 on."""
    values = {"name": name, "device_type": device, "activity_type": kind, "start_ns": start, "duration_ns": length}
    return SimpleNamespace(**{key: lambda value=value: value for key, value in values.items()})


def of_torch_2_11(name, device, kind, start, length):
    """The same in torch 2.11, which has no activity_type."""
    event = of_torch_2_12(name, device, kind, start, length)
    del event.activity_type
    event.is_user_annotation = lambda: kind.endswith("user_annotation")
    return event


@pytest.mark.parametrize("made", [of_torch_2_11, of_torch_2_12])
def test_a_gpus_timeline_holds_kernels_and_what_is_no_work(made):
    computing, communicating = _on_gpu([made(*row) for row in TIMELINE])
    assert computing.tolist() == [[0, 100], [200, 210]]
    assert communicating.tolist() == [[50, 150]]
    assert covered(np.concatenate([computing, communicating])) - covered(computing) == 50


def test_events_that_say_neither_are_not_measured():
    event = of_torch_2_11(*TIMELINE[0])
    del event.is_user_annotation
    tracer = Tracer(CPU)
    tracer._profile = SimpleNamespace(
        stop=lambda: None, profiler=SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: [event]))
    )
    tracer.device = torch.device("cuda")
    tracer._finish_kernels = lambda: None
    assert tracer.stop() is None
    assert "is_user_annotation" in tracer.failure and not tracer.running


def test_a_stopwatch_adds_its_blocks_up():
    watch = Stopwatch(CPU)
    for _ in range(2):
        with watch.running():
            time.sleep(0.02)
        time.sleep(0.05)
    assert 0.04 <= watch.read() < 0.08
