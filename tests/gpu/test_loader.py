"""On CUDA: fetching a step costs nothing while the GPU works, and its seconds where it had run dry; batches are pinned."""

import time

import pytest
import torch

from finetune.data.order.loader import RankStep, iterate_batches
from finetune.distributed.prefetcher import Prefetcher
from finetune.tasks.batch import Batch

pytestmark = pytest.mark.gpu
FETCHING = 0.03


class Rows:
    """Examples that are their own position."""

    def __getitem__(self, index):
        return {"id": index}


def collate(examples):
    ids = tuple(example["id"] for example in examples)
    return Batch(ids, {"input_ids": torch.tensor(ids), "pixels": [torch.ones(2)]}, {"labels": torch.tensor(ids)})


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_lie_in_memory_that_a_gpu_copies_from_alone(workers):
    steps = [RankStep(0, 0, ((0, 1), ()), 0, 1.0, 1.0)]
    ((step, batches),) = iterate_batches(Rows(), collate, steps, workers=workers, pin_memory=True)
    assert step.dummies == (False, True)
    for batch in batches:
        assert batch.inputs["input_ids"].is_pinned()
        assert batch.inputs["pixels"][0].is_pinned()
        assert batch.targets["labels"].is_pinned()


def slowly():
    for number in range(10):
        time.sleep(FETCHING)
        yield number, []


@pytest.mark.timeout(120)
def test_what_hides_behind_kernels_is_no_waiting():
    device = torch.device("cuda")
    prefetcher = Prefetcher(slowly(), device)
    prefetcher.take()
    prefetcher.waited()
    torch.cuda._sleep(10**9)  # cycles: half a second at 2 GHz, while the host goes on
    prefetcher.fetch()
    prefetcher.take()
    assert prefetcher.waited() < FETCHING / 3
    torch.cuda.synchronize()
    prefetcher.fetch()
    assert prefetcher.waited() == pytest.approx(FETCHING, rel=0.5)
