"""Tests that the update of float32 masters in one pass is the optimizer's own: with a stand-in for the kernels by their rules,
and with the kernels themselves under triton's interpreter, where triton is installed (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from finetune.distributed.engines import one_pass
from finetune.distributed.engines.master_weights import MasterWeights
from finetune.recipe.optimizers import OPTIMIZERS
from finetune.recipe.training import TrainingSection
from finetune.training.parameter_groups import make_optimizer
from tests.update_rules import RULES, in_one_pass

STEPS, CLIP = 5, 0.7
ONE_PASS = ("adamw", "adam", "lion", "sgd", "plain sgd")
RATES = {"lion": 1e-3, "sgd": 0.1, "plain sgd": 0.1}


@pytest.fixture(params=["stand-in", "interpreted"])
def kernels(request: pytest.FixtureRequest) -> Any:
    if request.param == "stand-in":
        return SimpleNamespace(**vars(RULES), rounding=0.0)
    if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs triton and TRITON_INTERPRET=1")
    found = importlib.import_module("finetune.models.update_kernels")
    return SimpleNamespace(**vars(found), rounding=2**-7)  # the interpreter cuts bits off where a GPU rounds


class Toy(nn.Module):
    """A matrix of several programs of a kernel, of no multiple of their size; one that has a gradient in every other step; a
    bias, without decay; a gain that is float32.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(67, 71).bfloat16())
        self.rare = nn.Parameter(torch.randn(6, 4).bfloat16())
        self.bias = nn.Parameter(torch.randn(5).bfloat16())
        self.gain = nn.Parameter(torch.randn(3))


def make(model: nn.Module, name: str) -> Any:
    kind = name.removeprefix("plain ")
    values = {"momentum": 0.0} if name == "plain sgd" else {}
    training = TrainingSection(
        learning_rate=RATES.get(name, 1e-2), global_batch=8, epochs=1, weight_decay=0.1, optimizer=kind, **values
    )
    return make_optimizer(model, training, kind)


def draw(step: int, index: int, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + index)
    return torch.randn(like.shape, generator=generator).to(like.dtype)


def give_gradients(model: nn.Module, step: int) -> None:
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if name != "rare" or step % 2:
            parameter.grad = draw(step, index, parameter)


def train(
    name: str, steps: range = range(STEPS), *, limit: float = CLIP
) -> tuple[Toy, Any, MasterWeights, list[float]]:
    model = Toy()
    optimizer = make(model, name)
    masters, norms = MasterWeights(optimizer), []
    for step in steps:
        give_gradients(model, step)
        norms.append(float(masters.step(model, optimizer.step, limit)))
        assert all(parameter.grad is None for parameter in model.parameters())
    return model, optimizer, masters, norms


def kept(model: Toy, optimizer: Any, masters: MasterWeights) -> dict[str, torch.Tensor]:
    """Masters and state, by name."""
    found = {}
    for name, parameter in model.named_parameters():
        master = masters.of(parameter)
        found[name] = master.detach()
        found |= {f"{name}.{key}": torch.as_tensor(value) for key, value in optimizer.state[master].items()}
    return found


@pytest.mark.parametrize("limit", [CLIP, 0.0], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("name", ONE_PASS)
def test_is_the_update_of_the_optimizer(name: str, limit: float, kernels: Any) -> None:
    theirs = train(name, limit=limit)
    with in_one_pass(kernels):
        ours = train(name, limit=limit)
    assert ours[3] == theirs[3] and all(norm > CLIP for norm in ours[3])
    found, wanted = kept(*ours[:3]), kept(*theirs[:3])
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert found[key].dtype == values.dtype and found[key].device == values.device, key
        torch.testing.assert_close(found[key], values, rtol=2e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    for parameter in (ours[0].matrix, ours[0].rare, ours[0].bias):
        master = ours[2].of(parameter).detach()
        assert parameter.dtype == torch.bfloat16 and master.dtype == torch.float32
        torch.testing.assert_close(parameter.float(), master.bfloat16().float(), rtol=kernels.rounding, atol=0.0)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_is_as_near_to_float64_as_the_optimizer(name: str, kernels: Any) -> None:
    model = Toy().double()
    exact = make(model, name)
    for group in exact.param_groups:
        group["fused"] = False
    for step in range(STEPS):
        for index, (_, parameter) in enumerate(model.named_parameters()):
            like = parameter.float() if parameter is model.gain else parameter.bfloat16()
            parameter.grad = draw(step, index, like).double() if parameter is not model.rare or step % 2 else None
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        exact.step()
    theirs = train(name)
    with in_one_pass(kernels):
        ours = train(name)
    errors = [float((way[2].of(way[0].matrix).detach() - model.matrix.detach()).abs().max()) for way in (ours, theirs)]
    assert errors[0] <= 2 * errors[1] + 1e-7 and errors[1] < 1e-5


@pytest.mark.parametrize("name", ONE_PASS)
def test_goes_on_where_the_optimizer_left_off(name: str, kernels: Any) -> None:
    """And the other way round: as a checkpoint of one is loaded by the other."""
    model, optimizer, masters, _ = train(name, range(2))
    with in_one_pass(kernels):
        masters.one_pass = one_pass.one_pass_of(optimizer)
    for step in (2, 3):
        give_gradients(model, step)
        masters.step(model, optimizer.step, CLIP)
    assert masters.one_pass is not None
    masters.one_pass = None
    give_gradients(model, 4)
    masters.step(model, optimizer.step, CLIP)
    wanted = kept(*train(name)[:3])
    for key, values in kept(model, optimizer, masters).items():
        torch.testing.assert_close(values, wanted[key], rtol=2e-5, atol=1e-6)


def test_the_learning_rate_is_followed_where_a_wrapper_made_other_groups(kernels: Any) -> None:
    """Accelerate's loads the optimizer's own state dict, whose groups take the place of the first ones."""

    def two_steps() -> torch.Tensor:
        model = Toy()
        optimizer = make(model, "adamw")
        masters = MasterWeights(optimizer)
        optimizer.load_state_dict(optimizer.state_dict())
        for step, rate in enumerate((1e-3, 5e-3)):
            for group in optimizer.param_groups:
                group["lr"] = rate
            give_gradients(model, step)
            masters.step(model, optimizer.step, CLIP)
        return masters.of(model.matrix).detach()

    wanted = two_steps()
    with in_one_pass(kernels):
        found = two_steps()
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=1e-6)


def test_a_gradient_that_lies_otherwise_in_memory(kernels: Any) -> None:
    def one_step(gradient: torch.Tensor) -> torch.Tensor:
        model = Toy()
        optimizer = make(model, "adamw")
        model.matrix.grad = gradient
        MasterWeights(optimizer).step(model, optimizer.step, CLIP)
        return model.matrix.detach()

    turned = draw(0, 0, torch.empty(71, 67, dtype=torch.bfloat16)).t()
    assert not turned.is_contiguous()
    with in_one_pass(kernels):
        assert torch.equal(one_step(turned), one_step(turned.contiguous()))


def test_a_norm_that_is_not_finite_reaches_the_weights(kernels: Any) -> None:
    """As clipping by torch does: the loop reads it before anything is saved."""
    with in_one_pass(kernels):
        model = Toy()
        optimizer = make(model, "adamw")
        model.bias.grad = torch.tensor([1.0, torch.nan, 1.0, 1.0, 1.0]).bfloat16()
        assert MasterWeights(optimizer).step(model, optimizer.step, CLIP).isnan()
    assert model.bias.isnan().all()


def test_which_optimizers_have_a_kernel() -> None:
    with in_one_pass():
        found = {
            name
            for name, spec in OPTIMIZERS.items()
            if spec.device == "any" and not spec.package and one_pass.one_pass_of(make(nn.Linear(3, 3), name))
        }
    assert found == {name for name, spec in OPTIMIZERS.items() if spec.kernel} == {"adamw", "adam", "lion", "sgd"}
    assert one_pass.one_pass_of(make(nn.Linear(3, 3), "adamw")) is None  # on a CPU


def test_weights_that_lie_otherwise_in_memory_are_left_to_the_optimizer() -> None:
    layer = nn.Linear(3, 4)
    layer.weight = nn.Parameter(torch.randn(3, 4).t())
    with in_one_pass():
        assert one_pass.one_pass_of(make(layer, "adamw")) is None


def test_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert one_pass._load_kernels() is None


def test_asks_the_device_for_nothing_and_frees_gradients() -> None:
    alive = []

    def watched(*arguments: Any) -> None:
        alive.append(len(held))

    with in_one_pass(SimpleNamespace(adamw=watched)), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        weight = nn.Parameter(mode.from_tensor(torch.zeros(3)))
        optimizer = make(nn.ParameterList([weight, nn.Parameter(mode.from_tensor(torch.zeros(2)))]), "adamw")
        way = one_pass.one_pass_of(optimizer)
        assert way is not None
        held = [
            (p, mode.from_tensor(torch.ones_like(p)), None) for group in optimizer.param_groups for p in group["params"]
        ]
        way.step(held, mode.from_tensor(torch.tensor(0.5)))
    assert alive == [1, 0]
