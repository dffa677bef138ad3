"""DistributedDataParallel is made without a warning, by the argument that the installed torch has for it, and no forward pass
copies buffers from rank 0.
"""

import warnings

import pytest
import torch
from torch import nn

from finetune.distributed.engines import accelerator
from tests.distributed import toy


class Counting(nn.Module):
    """Adds to a buffer in every forward pass: 1 on rank 0, 2 on rank 1."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs):
        self.seen += 1.0 + torch.distributed.get_rank()
        return self.linear(inputs)


def train():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        engine, _ = toy.open_toy("none", build=Counting)
    for _ in range(3):
        engine.model(torch.ones(1, 2)).sum().backward()
    return type(engine.model).__name__, float(engine.module.seen)


def test_each_rank_keeps_its_own_buffers(ranks):
    own = ranks.options(open_group=False, timeout=120).run(2, train)
    assert own == [("DistributedDataParallel", 3.0), ("DistributedDataParallel", 6.0)]


class OfTorch212:
    def __init__(self, module, broadcast_buffers=True, gradient_as_bucket_view=False):
        pass


class OfTorch213(OfTorch212):
    def __init__(self, module, gradient_as_bucket_view=False, forward_sync_buffers=None):
        pass


@pytest.mark.parametrize(("wrapper", "name"), [(OfTorch212, "broadcast_buffers"), (OfTorch213, "forward_sync_buffers")])
def test_the_argument_is_the_one_of_this_torch(monkeypatch, wrapper, name):
    monkeypatch.setattr(accelerator, "DistributedDataParallel", wrapper)
    assert accelerator._OwnBuffers().to_kwargs() == {name: False, "gradient_as_bucket_view": True}
