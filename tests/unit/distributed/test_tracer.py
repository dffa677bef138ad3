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


def test_a_gpus_timeline_holds_kernels_and_what_is_no_work():
    """As Kineto tells a GPU's: two kernels, of which NCCL's runs half beside the other; a marker and the host's calls."""
    gpu, host = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    told = [
        ("ampere_sgemm_128x64", gpu, "kernel", 0, 100),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", gpu, "kernel", 50, 100),
        ("Memcpy HtoD", gpu, "gpu_memcpy", 200, 10),
        ("nccl:all_reduce", gpu, "gpu_user_annotation", 0, 500),
        ("cudaLaunchKernel", host, "cuda_runtime", 0, 400),
    ]
    names = ("name", "device_type", "activity_type", "start_ns", "duration_ns")
    events = [SimpleNamespace(**{n: lambda v=v: v for n, v in zip(names, row, strict=True)}) for row in told]
    computing, communicating = _on_gpu(events)
    assert computing.tolist() == [[0, 100], [200, 210]]
    assert communicating.tolist() == [[50, 150]]
    assert covered(np.concatenate([computing, communicating])) - covered(computing) == 50


def test_a_stopwatch_adds_its_blocks_up():
    watch = Stopwatch(CPU)
    for _ in range(2):
        with watch.running():
            time.sleep(0.02)
        time.sleep(0.05)
    assert 0.04 <= watch.read() < 0.08
