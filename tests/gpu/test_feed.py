"""On CUDA: fetching a step costs nothing while the GPU works, and its seconds where the GPU had run dry."""

import time

import pytest
import torch

from finetune.training.feed import Ahead

pytestmark = pytest.mark.gpu
FETCHING = 0.03


def slowly():
    for number in range(10):
        time.sleep(FETCHING)
        yield number, []


@pytest.mark.timeout(120)
def test_what_hides_behind_kernels_is_no_waiting():
    device = torch.device("cuda")
    ahead = Ahead(slowly(), device)
    ahead.take()
    ahead.waited()
    torch.cuda._sleep(10**9)  # cycles: half a second at 2 GHz, while the host goes on
    ahead.fetch()
    ahead.take()
    assert ahead.waited() < FETCHING / 3
    torch.cuda.synchronize()
    ahead.fetch()
    assert ahead.waited() == pytest.approx(FETCHING, rel=0.5)
