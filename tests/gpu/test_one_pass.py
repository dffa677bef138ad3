"""On CUDA: kernels update bf16 weights with float32 masters as the optimizers' own steps do, with no float32 gradients."""

import importlib.util

import pytest
import torch
from torch import nn

from finetune.distributed.engines.master_weights import MasterWeights
from finetune.recipe.training import TrainingSection
from finetune.training.parameter_groups import make_optimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]
SHAPES = ((1024, 1000), (333, 77), (129,))
STEPS, CLIP = 4, 0.7


def open_masters(name):
    torch.manual_seed(0)
    model = nn.ParameterList([torch.randn(shape).to("cuda", torch.bfloat16) for shape in SHAPES])
    rate = {"lion": 1e-3, "sgd": 0.1}.get(name, 1e-2)
    training = TrainingSection(learning_rate=rate, global_batch=8, epochs=1, weight_decay=0.1, optimizer=name)
    optimizer = make_optimizer(model, training, name)
    return model, optimizer, MasterWeights(optimizer)


def train(name, *, in_one_pass):
    """Masters and state after STEPS; bytes that the last update took beside what was there."""
    model, optimizer, masters = open_masters(name)
    assert masters.one_pass is not None
    if not in_one_pass:
        masters.one_pass = None
    torch.manual_seed(1)
    for _ in range(STEPS):
        for parameter in model:
            parameter.grad = torch.randn_like(parameter)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        norm = masters.step(model, optimizer.step, CLIP)
        assert float(norm) > CLIP
    more = torch.cuda.max_memory_allocated() - before
    found = []
    for parameter in model:
        master = masters.of(parameter).detach()
        assert torch.equal(parameter.detach(), master.bfloat16())
        found += [master, *optimizer.state[masters.of(parameter)].values()]
    return found, more


@pytest.mark.parametrize("name", ["adamw", "adam", "lion", "sgd"])
def test_kernels_make_the_updates_of_the_optimizer(name):
    ours, more = train(name, in_one_pass=True)
    theirs, _ = train(name, in_one_pass=False)
    assert len(ours) == len(theirs) >= 2 * len(SHAPES)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    assert more < 1 << 20  # gradients in float32 would be 4 MiB


def test_the_host_does_not_wait():
    model, optimizer, masters = open_masters("adamw")
    for step in range(2):
        for parameter in model:
            parameter.grad = torch.randn_like(parameter)
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first makes kernels and state
        try:
            masters.step(model, optimizer.step, CLIP)
        finally:
            torch.cuda.set_sync_debug_mode("default")
