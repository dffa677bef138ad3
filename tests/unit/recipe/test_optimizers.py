"""The registry of optimizers says of each what it really does: names and bytes of its state, its step count, its decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune.errors import UserError
from finetune.recipe.optimizers import OPTIMIZERS, describe_choice, describe_decay, spec_of
from finetune.recipe.training import TrainingSection
from finetune.training.parameter_groups import make_optimizer

HERE = [spec.name for spec in OPTIMIZERS.values() if not spec.from_deepspeed]


def one_step(name: str, gradient: float = 0.0, **options: float) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """A matrix of ones after a step; and its optimizer."""
    module = nn.Linear(3, 2, bias=False)
    nn.init.ones_(module.weight)
    optimizer = make_optimizer(module, TrainingSection(learning_rate=0.1, **options), name)  # type: ignore[arg-type]
    module.weight.grad = torch.full_like(module.weight, gradient)
    optimizer.step()
    return module.weight, optimizer


@pytest.mark.parametrize("name", HERE)
def test_state_is_named_as_the_optimizer_names_it(name: str) -> None:
    weight, optimizer = one_step(name, 1.0)
    spec, state = spec_of(optimizer), optimizer.state[weight]
    assert spec is OPTIMIZERS[name]
    tensors = {key for key, value in state.items() if torch.is_tensor(value) and value.shape == weight.shape}
    assert tensors == set(spec.state)
    assert ("step" in state) == (spec.step in ("host", "device", "number"))
    assert spec.state_bytes == (2.03125 if spec.scales else 4 * len(tensors))


def test_there_is_no_state_without_momentum() -> None:
    weight, optimizer = one_step("sgd", 1.0, momentum=0.0)
    assert OPTIMIZERS["sgd"].state_of(optimizer.param_groups[0]) == ()
    assert not [value for value in optimizer.state[weight].values() if torch.is_tensor(value)]


@pytest.mark.parametrize("name", HERE)
def test_decay_is_of_the_kind_that_is_told(name: str) -> None:
    """Without a gradient, decoupled decay takes exactly learning rate x decay x weight; coupled L2 becomes a gradient."""
    weight, _ = one_step(name, weight_decay=0.5)
    decoupled = torch.allclose(weight, torch.full_like(weight, 1 - 0.1 * 0.5), atol=1e-6)
    if name == "sgd":  # whose first step is the same in both; the second is not, because of momentum
        module = nn.Linear(3, 2, bias=False)
        nn.init.ones_(module.weight)
        optimizer = make_optimizer(module, TrainingSection(learning_rate=0.1, weight_decay=0.5), name)
        for _ in range(2):
            module.weight.grad = torch.zeros_like(module.weight)
            optimizer.step()
        decoupled = torch.allclose(module.weight, torch.full_like(module.weight, (1 - 0.1 * 0.5) ** 2), atol=1e-6)
    assert decoupled == (OPTIMIZERS[name].decay == "decoupled")
    assert name in describe_decay() and f"{name}: " in describe_choice()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("name", [spec.name for spec in OPTIMIZERS.values() if spec.device == "cuda"])
def test_what_needs_cuda_says_so_and_names_what_does_the_same(name: str) -> None:
    with pytest.raises(UserError, match="needs CUDA") as caught:
        one_step(name)
    assert OPTIMIZERS[name].same_update in caught.value.remedy


def test_lion_is_its_paper() -> None:
    """Algorithm 2 of Chen et al. 2023, written out."""
    torch.manual_seed(0)
    module = nn.Linear(4, 3, bias=False)
    weight, momentum = module.weight.detach().clone(), torch.zeros(3, 4)
    optimizer = make_optimizer(module, TrainingSection(learning_rate=0.01, weight_decay=0.2, betas=(0.9, 0.99)), "lion")
    for _ in range(5):
        gradient = torch.randn(3, 4)
        module.weight.grad = gradient.clone()
        optimizer.step()
        update = (0.9 * momentum + 0.1 * gradient).sign()
        weight = weight - 0.01 * (update + 0.2 * weight)
        momentum = 0.99 * momentum + 0.01 * gradient
    torch.testing.assert_close(module.weight.detach(), weight, rtol=1e-5, atol=1e-6)
